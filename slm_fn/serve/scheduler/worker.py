"""The worker: one thread that owns the engine, its fair queue and its batch.

Invariant: PyTorch runs on this thread only; everything else waits on asyncio queues. A slot whose
client left or whose time is up is free within one step.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from slm_fn.infer import engine as engines
from slm_fn.infer.batching.engine_state import EngineState
from slm_fn.infer.engine import Engine
from slm_fn.infer.request import Request, Token
from slm_fn.serve.protocol.errors import ApiError
from slm_fn.serve.protocol.responses import OutputDelta
from slm_fn.serve.scheduler import jobs
from slm_fn.serve.scheduler.fair_queue import FairQueue
from slm_fn.serve.scheduler.jobs import Job, ScheduledJob, TokenBytes
from slm_fn.serve.scheduler.metrics import EngineMetrics

log = logging.getLogger(__name__)
TIMED_OUT = ApiError(504, "the generation took longer than this server allows", "timeout")
SHUTTING_DOWN = ApiError(503, "the server is shutting down", "shutting_down")

Phase = Literal["loading", "ready", "draining", "closed", "failed"]
Output = tuple[ScheduledJob, OutputDelta | Exception]


class Worker:
    """Runs jobs in batches, on a thread of its own.

    Args:
        make_engine: builds the engine; called on the thread.
        token_bytes: the bytes of a token id.
        max_queue: jobs that may wait for a slot; clients that have no job yet may use as many more.
    """

    def __init__(
        self, make_engine: Callable[[], Engine], token_bytes: TokenBytes, max_queue: int = 64
    ) -> None:
        self.make_engine = make_engine
        self.token_bytes = token_bytes
        self.max_queue = max_queue
        self.num_slots = 0
        self.phase: Phase = "loading"
        self.error: Exception | None = None
        self.queue = FairQueue[ScheduledJob](lambda scheduled: scheduled.is_cancelled)
        self.running: dict[int, ScheduledJob] = {}
        self.keys = itertools.count()
        # Reentrant; held for a moment only, never while the model computes.
        self.condition = threading.Condition()
        self.metrics = EngineMetrics(lambda: len(self.queue), lambda: len(self.running))
        self.thread = threading.Thread(target=self._run, name="slm-worker", daemon=True)
        self.loop: asyncio.AbstractEventLoop | None = None

    @property
    def num_active(self) -> int:
        """Jobs in the batch, and jobs in the queue that were not cancelled."""
        with self.condition:
            return len(self.running) + len(self.queue)

    def check_capacity(self, num_jobs: int) -> None:
        """Rejects a request that can never fit, before its jobs are made.

        Raises:
            ApiError: 400 if there is never room for so many jobs; 503 if the worker is not ready.
        """
        if self.phase != "ready":
            raise ApiError(503, f"the server is {self.phase}", self.phase)
        capacity = self.num_slots + self.max_queue
        if num_jobs > capacity:
            message = f"{num_jobs} replies requested at once; this server accepts {capacity}"
            raise ApiError(400, message, "invalid_value", "n")

    def submit(self, new_jobs: Sequence[Job]) -> list[ScheduledJob]:
        """Queues the jobs of one request: all of them or none.

        Raises:
            ApiError: 429 if there is no room for all, 400 if there never is, 503 if not ready.
        """
        scheduled_jobs = [jobs.schedule(job) for job in new_jobs]
        with self.condition:
            self.check_capacity(len(new_jobs))
            client_id = new_jobs[0].client_id
            # One client alone must not fill the queue, so new clients have as much room again.
            is_known = any(each.job.client_id == client_id for each in self._all_jobs())
            max_waiting = self.max_queue if is_known else 2 * self.max_queue
            if self.num_active + len(new_jobs) > self.num_slots + max_waiting:
                message = "too many generations are waiting; try again in a moment"
                raise ApiError(429, message, "rate_limit_exceeded")
            for scheduled in scheduled_jobs:
                self.queue.push(client_id, scheduled)
            self.condition.notify()
        return scheduled_jobs

    def _all_jobs(self) -> Iterator[ScheduledJob]:
        yield from self.queue
        yield from self.running.values()

    def start(self) -> None:
        """Starts the thread; outputs go to the event loop that calls this."""
        self.loop = asyncio.get_running_loop()
        self.thread.start()

    def drain(self) -> None:
        """Stops accepting jobs; accepted ones continue."""
        with self.condition:
            if self.phase in ("loading", "ready"):
                self.phase = "draining"

    def cancel_all(self, error: Exception) -> None:
        """Cancels all jobs and sends them the reason."""
        with self.condition:
            for scheduled in self._all_jobs():
                if not scheduled.is_cancelled:
                    scheduled.progress.cancelled.set()
                    self._send([(scheduled, error)])
            self.condition.notify()

    def close(self) -> None:
        """Stops accepting jobs, cancels all, and waits for the current step to end."""
        with self.condition:
            self.phase = "closed"
            self.cancel_all(SHUTTING_DOWN)
        self.thread.join()

    def _run(self) -> None:
        try:
            engine = self.make_engine()
            state = _warm_up(engine)
        except Exception as error:  # of any kind: `Server` ends and raises it
            log.exception("the engine could not be started")
            self.phase, self.error = "failed", error
            return
        with self.condition:
            self.num_slots = engine.config.max_batch
            if self.phase == "loading":
                self.phase = "ready"
        while self._wait_for_jobs():
            try:
                state = self._run_step(engine, state)
            except Exception as error:  # of any kind: its jobs end, the server continues
                log.exception("a step failed; its %d generations end", len(self.running))
                self._fail(error, list(self.running))
                state = engines.init(engine)

    def _run_step(self, engine: Engine, state: EngineState) -> EngineState:
        for key in self._remove_cancelled():
            state = engines.evict(engine, state, key)
        for key, scheduled in self._fill_slots():
            try:
                state = engines.admit(engine, state, key, scheduled.job.request)
            except ValueError as error:  # concerns this request only
                self._fail(error, [key])
        self.metrics.batch_size.observe(len(state.sequences))
        state, tokens = engines.step(engine, state)
        for key in self._process_tokens(tokens):
            state = engines.evict(engine, state, key)
        return state

    def _wait_for_jobs(self) -> bool:
        """Blocks until there are jobs; returns False once the worker is closed."""

        def is_needed() -> bool:
            return bool(self.running or self.queue.queues) or self.phase == "closed"

        with self.condition:
            self.condition.wait_for(is_needed)
            return self.phase != "closed"

    def _remove_cancelled(self) -> list[int]:
        """Removes jobs that are cancelled or late; returns the keys of those in the batch."""
        with self.condition:
            self._cancel_late()
            self.queue.remove_cancelled()
            removed = [key for key, scheduled in self.running.items() if scheduled.is_cancelled]
            for key in removed:
                del self.running[key]
                self.metrics.finished.labels("cancelled").inc()
            return removed

    def _cancel_late(self) -> None:
        now = time.monotonic()
        late = [scheduled for scheduled in self._all_jobs() if now > scheduled.progress.deadline]
        self._send([(scheduled, TIMED_OUT) for scheduled in late if not scheduled.is_cancelled])
        for scheduled in late:
            scheduled.progress.cancelled.set()

    def _fill_slots(self) -> list[tuple[int, ScheduledJob]]:
        """Moves jobs from the queue to free slots of the batch; returns them with their keys."""
        joined: list[tuple[int, ScheduledJob]] = []
        with self.condition:
            while len(self.running) < self.num_slots:
                scheduled = self.queue.pop()
                if scheduled is None:
                    break
                key = next(self.keys)
                self.running[key] = scheduled
                joined.append((key, scheduled))
                waited = time.monotonic() - scheduled.progress.arrived_at
                self.metrics.waited_seconds.observe(waited)
        return joined

    def _fail(self, error: Exception, keys: Sequence[int]) -> None:
        with self.condition:
            failed = [self.running.pop(key) for key in keys]
            self._send([(scheduled, error) for scheduled in failed if not scheduled.is_cancelled])
            self.metrics.finished.labels("failed").inc(len(failed))

    def _process_tokens(self, tokens: Sequence[Token]) -> list[int]:
        """Sends a step's deltas; returns the keys of jobs that ended at a stop string.

        The engine itself evicts those that it ended.
        """
        outputs: list[Output] = []
        stopped = []
        for token in tokens:
            scheduled = self.running[token.key]
            self._record_token(scheduled, token)
            deltas = jobs.take_token(scheduled, token, self.token_bytes)
            outputs += [(scheduled, delta) for delta in deltas]
            finish = deltas[-1].finish if deltas else None
            if finish is None:
                continue
            self.metrics.finished.labels(finish).inc()
            with self.condition:
                del self.running[token.key]
            if token.finish is None:
                stopped.append(token.key)
        self._send(outputs)
        return stopped

    def _record_token(self, scheduled: ScheduledJob, token: Token) -> None:
        job, progress = scheduled
        now = time.monotonic()
        if token.prompt is not None:
            progress.num_cached_tokens = token.prompt.num_cached_tokens
            self.metrics.first_token_seconds.observe(now - progress.arrived_at)
            self.metrics.prompt_tokens.inc(len(job.request.prompt))
            self.metrics.cached_tokens.inc(progress.num_cached_tokens)
        else:
            self.metrics.between_tokens_seconds.observe(now - progress.last_token_at)
        self.metrics.completion_tokens.inc(token.id is not None)
        progress.last_token_at = now

    def _send(self, outputs: Sequence[Output]) -> None:
        """Passes outputs to the event loop, all of a step in one call."""
        if not outputs or self.loop is None:
            return
        try:
            self.loop.call_soon_threadsafe(_deliver, outputs)
        except RuntimeError:  # the loop is closed: the process is about to end
            for scheduled, _ in outputs:
                scheduled.progress.cancelled.set()


def _deliver(outputs: Sequence[Output]) -> None:
    for scheduled, output in outputs:
        # The queues are unbounded, but a job has no more deltas than the context has tokens.
        scheduled.job.outputs.put_nowait(output)


def _warm_up(engine: Engine) -> EngineState:
    """Generates two tokens, so that no client waits for what is built at first use."""
    request = Request((0,), max_tokens=min(2, engine.config.context - 1))
    state = engines.admit(engine, engines.init(engine), -1, request)
    while state.sequences:
        state, _ = engines.step(engine, state)
    return state
