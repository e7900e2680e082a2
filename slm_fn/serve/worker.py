"""One thread that owns the model: active generations take turns, token by token, until done or cancelled.

Invariant: torch runs on this thread alone; everyone else waits on an asyncio queue and can cancel within one token.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator

from slm_fn.infer.stream import Piece
from slm_fn.serve.protocol import ApiError

log = logging.getLogger(__name__)


class Job:
    """One generation: how to begin it, where its pieces go, and a flag that ends it. Made on the event loop."""

    def __init__(self, begin: Callable[[], Iterator[Piece]]) -> None:
        self.begin = begin
        self.cancelled = threading.Event()
        self.loop = asyncio.get_running_loop()
        # Unbounded, but a generation has no more pieces than the context has tokens.
        self.pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()

    def send(self, piece: Piece | Exception) -> None:
        """Hand a piece, or what went wrong, to the event loop; called on the worker's thread."""
        try:
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)
        except RuntimeError:
            self.cancelled.set()  # the loop is closed: the server is going down


class Worker:
    """The thread and its queue. At most `max_active` generations take turns; `max_waiting` more may wait."""

    def __init__(self, max_active: int = 4, max_waiting: int = 16) -> None:
        self.max_active, self.max_waiting = max_active, max_waiting
        self.waiting: deque[Job] = deque()
        self.running: list[tuple[Job, Iterator[Piece]]] = []
        self.changed = threading.Condition()  # reentrant; held for a moment only, never while the model computes
        self.closed = False
        self.thread = threading.Thread(target=self._run, name="slm-worker", daemon=True)

    @property
    def active(self) -> int:
        """Generations that hold a place: those taking turns, and those waiting whose client is still there."""
        with self.changed:
            return len(self.running) + sum(not job.cancelled.is_set() for job in self.waiting)

    def submit(self, job: Job) -> None:
        """Queue a generation.

        Raises:
            ApiError: 429 when the queue is full, 503 when the server is shutting down.
        """
        with self.changed:
            if self.closed:
                raise ApiError(503, "the server is shutting down", "shutting_down")
            if self.active >= self.max_active + self.max_waiting:
                raise ApiError(429, "too many generations are waiting; try again in a moment", "rate_limit_exceeded")
            self.waiting.append(job)
            self.changed.notify()

    def start(self) -> None:
        """Begin to work."""
        self.thread.start()

    def close(self) -> None:
        """Take no more work, cancel what is left, and wait for the token under way."""
        with self.changed:
            self.closed = True
            for job in (*self.waiting, *(job for job, _ in self.running)):
                job.cancelled.set()
            self.changed.notify()
        self.thread.join()

    def _run(self) -> None:
        while self._admit():
            for job, pieces in list(self.running):
                if not _turn(job, pieces):
                    with self.changed:
                        self.running.remove((job, pieces))

    def _admit(self) -> bool:
        """Wait for work and take in what there is room for; False when the server has closed."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.running or self.closed)
            while self.waiting and len(self.running) < self.max_active:
                job = self.waiting.popleft()
                self.running.append((job, _begin(job)))
            return bool(self.running) or not self.closed


def _begin(job: Job) -> Iterator[Piece]:
    yield from job.begin()  # lazily, so that whatever it raises is raised in the job's own turn


def _turn(job: Job, pieces: Iterator[Piece]) -> bool:
    """One token of one generation; False when it has ended."""
    if job.cancelled.is_set():
        return False
    try:
        piece = next(pieces)
    except Exception as error:  # whatever it is, the client is told and the server lives on
        log.exception("a generation failed")
        job.send(error)
        return False
    if piece.text or piece.finish:
        job.send(piece)
    return piece.finish is None
