"""One thread that owns the model: active generations take turns, token by token, until done or cancelled.

Invariant: torch runs on this thread alone; everyone else waits on an asyncio queue and can cancel within one token.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterator

from slm_fn.infer import decode, stream
from slm_fn.infer.stream import Piece
from slm_fn.pipeline.model import Model
from slm_fn.serve.protocol import ApiError, Order


class Job:
    """One generation: its prompt, where its pieces go, and a flag that ends it."""

    def __init__(self, order: Order, prompt: list[int], seed: int) -> None:
        self.order, self.prompt, self.seed = order, prompt, seed
        self.cancelled = threading.Event()
        self.loop = asyncio.get_running_loop()
        self.pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()

    def send(self, piece: Piece | Exception) -> None:
        """Hand a piece, or what went wrong, to the event loop; called on the worker's thread."""
        try:
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)
        except RuntimeError:
            self.cancelled.set()  # the loop is closed: the server is going down


class Worker:
    """The thread and its queue. At most `max_active` generations take turns; `max_waiting` more may wait."""

    def __init__(self, model: Model, max_active: int = 4, max_waiting: int = 16) -> None:
        self.model, self.max_active, self.max_waiting = model, max_active, max_waiting
        self.waiting: deque[Job] = deque()
        self.running: list[tuple[Job, Iterator[Piece]]] = []
        self.changed = threading.Condition()
        self.closed = False
        self.thread = threading.Thread(target=self._run, name="slm-worker", daemon=True)

    @property
    def active(self) -> int:
        """Generations running or waiting."""
        with self.changed:
            return len(self.running) + len(self.waiting)

    def submit(self, job: Job) -> None:
        """Queue a generation.

        Raises:
            ApiError: 429 when the queue is full, 503 when the server is shutting down.
        """
        with self.changed:
            if self.closed:
                raise ApiError(503, "the server is shutting down", "shutting_down")
            if len(self.running) + len(self.waiting) >= self.max_active + self.max_waiting:
                raise ApiError(429, "too many generations are waiting; try again in a moment", "queue_full")
            self.waiting.append(job)
            self.changed.notify()

    def start(self) -> None:
        """Begin to work."""
        self.thread.start()

    def close(self, timeout: float = 5.0) -> None:
        """Finish what runs, as far as `timeout` seconds allow, and end the thread."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join(timeout)
        for job in [*self.waiting, *(job for job, _ in self.running)]:
            job.cancelled.set()
        self.thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.running or self.closed)
                while self.waiting and len(self.running) < self.max_active:
                    job = self.waiting.popleft()
                    self.running.append((job, pieces(self.model, job)))
                if self.closed and not self.running:
                    return
                turns = list(self.running)
            for job, turn in turns:
                if not self._turn(job, turn):
                    with self.changed:
                        self.running.remove((job, turn))

    def _turn(self, job: Job, turn: Iterator[Piece]) -> bool:
        """One token of one generation; False when it has ended."""
        if job.cancelled.is_set():
            return False
        try:
            piece = next(turn)
        except Exception as error:  # whatever it is, the client is told and the server lives on
            job.send(error)
            return False
        if piece.text or piece.finish:
            job.send(piece)
        return piece.finish is None


def pieces(model: Model, job: Job) -> Iterator[Piece]:
    """A generation as text pieces, one step a token; the last piece says why it ended."""
    order, size = job.order, model.config.context
    ids = decode.generate(
        model.apply,
        model.init_cache,
        model.params,
        job.prompt,
        config=order.sampling,
        seed=job.seed,
        max_tokens=min(order.max_tokens or size, size - len(job.prompt)),
        stop_ids=model.stop_ids,
        size=size,
    )
    return stream.pieces(ids, model.tokenizer.token_bytes, model.stop_ids, order.stops)
