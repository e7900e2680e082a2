"""One thread that owns the engine: requests join its batch in fair order and leave it when done, cancelled or late.

Invariant: torch runs on this thread alone; everyone else waits on an asyncio queue, and a row whose client left or
whose time is up is free within one step.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence

from slm_fn.infer import engine as engines
from slm_fn.infer import stream
from slm_fn.infer.engine import Engine
from slm_fn.infer.request import Request, Token
from slm_fn.infer.stream import Text
from slm_fn.serve.errors import ApiError
from slm_fn.serve.metrics import Metrics
from slm_fn.serve.queue import Line
from slm_fn.serve.replies import Part, Said

log = logging.getLogger(__name__)
LATE = ApiError(504, "the reply took longer than this server allows", "timeout")
LEAVING = ApiError(503, "the server is shutting down", "shutting_down")
Pieces = asyncio.Queue[Part | Exception]


class Job:
    """One choice: what the engine is asked, where its parts go, and what of its text is held back."""

    def __init__(
        self,
        index: int,
        request: Request,
        pieces: Pieces,
        stops: Sequence[str] = (),
        echo: str | None = None,
        who: str = "",
        timeout: float = 300.0,
    ) -> None:
        self.index, self.request, self.pieces = index, request, pieces
        self.stops, self.echo, self.who = stops, echo, who
        self.cancelled = threading.Event()
        self.arrived = self.last = time.monotonic()
        self.deadline = self.arrived + timeout
        self.text, self.held = Text(), list[Said]()
        self.shown = self.told = self.num_tokens = self.cached = 0  # bytes of text, bytes of tokens, tokens


class Worker:
    """The thread, its line and its batch.

    Args:
        make: builds the engine, on the thread.
        token_bytes: what a token stands for.
        max_waiting: generations that may wait for a row; as many again of those who have no place yet.
    """

    def __init__(self, make: Callable[[], Engine], token_bytes: Callable[[int], bytes], max_waiting: int = 64) -> None:
        self.make, self.token_bytes, self.max_waiting = make, token_bytes, max_waiting
        self.phase = "loading"  # then ready, draining, closed; or failed
        self.error: Exception | None = None
        self.line = Line[Job](lambda job: job.cancelled.is_set())
        self.running: dict[int, Job] = {}
        self.numbers = itertools.count()
        self.changed = threading.Condition()  # reentrant; held for a moment only, never while the model computes
        self.metrics = Metrics(lambda: len(self.line), lambda: len(self.running))
        self.thread = threading.Thread(target=self._run, name="slm-worker", daemon=True)
        self.loop: asyncio.AbstractEventLoop | None = None
        self.room = 0

    @property
    def active(self) -> int:
        """Generations that hold a place: those in the batch, and those waiting whose client is still there."""
        with self.changed:
            return len(self.running) + len(self.line)

    def check(self, num_jobs: int) -> None:
        """Refuse a request that will never fit, before anything is made for it.

        Raises:
            ApiError: 400 when there will never be room for so many, 503 when not ready.
        """
        if self.phase != "ready":
            raise ApiError(503, f"the server is {self.phase}", self.phase)
        room = self.room + self.max_waiting
        if num_jobs > room:
            raise ApiError(400, f"{num_jobs} replies at once are too many; {room} fit", "invalid_value", "n")

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue the choices of one request: all of them or none.

        Raises:
            ApiError: 429 when there is no room for all, 400 when there never will be, 503 when not ready.
        """
        with self.changed:
            self.check(len(jobs))
            # Who has no place yet finds as many behind those of the others: one client alone fills no server.
            known = any(job.who == jobs[0].who for job in (*self.line, *self.running.values()))
            if self.active + len(jobs) > self.room + self.max_waiting * (1 if known else 2):
                raise ApiError(429, "too many generations are waiting; try again in a moment", "rate_limit_exceeded")
            for job in jobs:
                self.line.push(job.who, job)
            self.changed.notify()

    def start(self) -> None:
        """Begin to work; from the event loop, to which the parts go."""
        self.loop = asyncio.get_running_loop()
        self.thread.start()

    def drain(self) -> None:
        """Take no more work; what was accepted goes on."""
        with self.changed:
            if self.phase in ("loading", "ready"):
                self.phase = "draining"

    def end(self, why: Exception) -> None:
        """Tell all that are left why they end."""
        with self.changed:
            for job in (*self.line, *self.running.values()):
                if not job.cancelled.is_set():
                    job.cancelled.set()
                    self._send([(job, why)])
            self.changed.notify()

    def close(self) -> None:
        """Take no more work, end what is left, and wait for the step under way."""
        with self.changed:
            self.phase = "closed"
            self.end(LEAVING)
        self.thread.join()

    def _run(self) -> None:
        try:
            engine = self.make()
            state = _warm(engine)
        except Exception as error:  # whatever it is, whoever started the server is told
            log.exception("the model cannot be served")
            self.phase, self.error = "failed", error
            return
        with self.changed:
            self.room = engine.config.max_batch
            self.phase = "ready" if self.phase == "loading" else self.phase
        while self._wait():
            try:
                for key in self._leaving():
                    state = engines.evict(engine, state, key)
                for key, job in self._joining():
                    try:
                        state = engines.admit(engine, state, key, job.request)
                    except ValueError as error:  # nobody else's fault
                        self._fail(error, [key])
                self.metrics.batch.observe(len(state.rows))
                state, tokens = engines.step(engine, state)
                for key in self._take(tokens):
                    state = engines.evict(engine, state, key)
            except Exception as error:  # whatever it is, the clients are told and the server lives on
                log.exception("a step failed; its %d generations end", len(self.running))
                self._fail(error, list(self.running))
                state = engines.init(engine)

    def _wait(self) -> bool:
        """Sleep until there is work; False when the server has closed."""
        with self.changed:
            self.changed.wait_for(lambda: self.running or self.line.lines or self.phase == "closed")
            return self.phase != "closed"

    def _leaving(self) -> list[int]:
        """Take those out of the batch who were cancelled or are late; late ones in the line go as well."""
        with self.changed:
            now = time.monotonic()
            late = [job for job in (*self.line, *self.running.values()) if now > job.deadline]
            self._send([(job, LATE) for job in late if not job.cancelled.is_set()])
            for job in late:
                job.cancelled.set()
            self.line.sweep()
            gone = [key for key, job in self.running.items() if job.cancelled.is_set()]
            for key in gone:
                del self.running[key]
                self.metrics.ended.labels("cancelled").inc()
            return gone

    def _joining(self) -> list[tuple[int, Job]]:
        """Take in what there is room for."""
        joined: list[tuple[int, Job]] = []
        with self.changed:
            while len(self.running) < self.room and (job := self.line.pop()) is not None:
                key = next(self.numbers)
                self.running[key] = job
                joined.append((key, job))
                self.metrics.waited.observe(time.monotonic() - job.arrived)
        return joined

    def _fail(self, error: Exception, keys: Sequence[int]) -> None:
        with self.changed:
            gone = [self.running.pop(key) for key in keys]
            self._send([(job, error) for job in gone if not job.cancelled.is_set()])
            self.metrics.ended.labels("failed").inc(len(gone))

    def _take(self, tokens: Sequence[Token]) -> list[int]:
        """Turn a step's tokens to parts and send them; returns whose text has met a stop string."""
        parts: list[tuple[Job, Part | Exception]] = []
        stopped = []
        for token in tokens:
            job = self.running[token.key]
            self._count(job, token)
            told = _parts(job, token, self.token_bytes)
            parts += [(job, part) for part in told]
            finish = told[-1].finish if told else None
            if finish:
                self.metrics.ended.labels(finish).inc()
                with self.changed:
                    del self.running[token.key]
                if token.finish is None:
                    stopped.append(token.key)
        self._send(parts)
        return stopped

    def _count(self, job: Job, token: Token) -> None:
        now = time.monotonic()
        if token.prompt is not None:
            job.cached = token.prompt.cached_tokens
            self.metrics.first.observe(now - job.arrived)
            self.metrics.read.inc(len(job.request.prompt))
            self.metrics.cached.inc(job.cached)
        else:
            self.metrics.between.observe(now - job.last)
        self.metrics.written.inc(token.id is not None)
        job.last = now

    def _send(self, parts: Sequence[tuple[Job, Part | Exception]]) -> None:
        """Hand parts to the event loop, all of a step in one call."""
        if not parts or self.loop is None:
            return
        try:
            self.loop.call_soon_threadsafe(_deliver, parts)
        except RuntimeError:  # the loop is closed: the server is going down
            for job, _ in parts:
                job.cancelled.set()


def _deliver(parts: Sequence[tuple[Job, Part | Exception]]) -> None:
    for job, part in parts:
        # Unbounded, but a generation has no more parts than the context has tokens.
        job.pieces.put_nowait(part)


def _warm(engine: Engine) -> engines.EngineState:
    """Run a reply of two tokens, so that no client pays for what is made at first use."""
    state = engines.admit(engine, engines.init(engine), -1, Request((0,), max_tokens=min(2, engine.config.size - 1)))
    while state.rows:
        state, _ = engines.step(engine, state)
    return state


def _parts(job: Job, token: Token, token_bytes: Callable[[int], bytes]) -> list[Part]:
    """What a token adds to what the client sees: nothing while it may yet become a stop string."""
    out = []
    if token.prompt is not None and job.echo is not None:
        ids, told = job.request.prompt, token.prompt.logprobs
        said = [Said(ids[0], None), *(Said(i, *one) for i, one in zip(ids[1:], told, strict=False))]
        out.append(Part(job.index, job.echo, tuple(said), cached=job.cached))
    text = ""
    if token.id is not None:
        job.num_tokens += 1
    if token.id is not None and token.id not in job.request.stop_ids:
        data = token_bytes(token.id)
        job.text, text = stream.push(job.stops, job.text, data)
        job.held.append(Said(token.id, token.logprob, token.top))
    finish = "stop" if job.text.stopped else token.finish
    if finish and not job.text.stopped:
        text += stream.flush(job.stops, job.text)
    if text or finish:
        said = _certain(job, text, token_bytes)
        out.append(Part(job.index, text, tuple(said), job.num_tokens, finish, job.cached))
    return out


def _certain(job: Job, text: str, token_bytes: Callable[[int], bytes]) -> list[Said]:
    """The accounts of the tokens behind a text: of a text that was cut, those that begin before the cut."""
    job.shown += len(text.encode())
    said, job.held = job.held, []
    if not job.text.stopped:
        job.told += sum(len(token_bytes(one.id)) for one in said)
        return said
    kept = []
    for one in said:
        if job.told >= job.shown:
            break
        kept.append(one)
        job.told += len(token_bytes(one.id))
    return kept
