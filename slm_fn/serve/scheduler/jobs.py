"""Jobs of the worker: the immutable request of one choice, its progress, and its output text.

Invariant: text leaves a job only when no stop string can begin in it; the tokens of a text cut at a
stop string are those that begin before the cut.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from slm_fn.infer import detokenizer
from slm_fn.infer.detokenizer import DetokenizerState
from slm_fn.infer.request import PromptResult, Request, Token
from slm_fn.serve.protocol.logprobs import TokenLogprob
from slm_fn.serve.protocol.responses import OutputDelta

OutputQueue = asyncio.Queue[OutputDelta | Exception]
TokenBytes = Callable[[int], bytes]


class Job(NamedTuple):
    """One choice to generate.

    Attributes:
        choice_index: number of the choice in its response.
        request: what the engine generates.
        outputs: receives the deltas, or the exception that ended the job.
        stops: strings before which the text ends.
        echo: the prompt's text, if the output begins with it.
        client_id: whom fairness applies to.
        timeout_seconds: from the job's arrival to its last token.
    """

    choice_index: int
    request: Request
    outputs: OutputQueue
    stops: tuple[str, ...] = ()
    echo: str | None = None
    client_id: str = ""
    timeout_seconds: float = 300.0


class JobProgress:
    """The mutable state of a job.

    The worker's thread changes it, except for `cancelled`, which any thread may set.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self.cancelled = threading.Event()
        self.arrived_at = time.monotonic()
        self.last_token_at = self.arrived_at
        self.deadline = self.arrived_at + timeout_seconds
        self.num_tokens = 0
        self.num_cached_tokens = 0
        self.text = DetokenizerState()
        self.pending_logprobs: list[TokenLogprob] = []
        self.num_text_bytes = 0  # of the text sent
        self.num_token_bytes = 0  # of the tokens whose log probabilities were sent


class ScheduledJob(NamedTuple):
    """A job in the queue or in the batch."""

    job: Job
    progress: JobProgress

    @property
    def is_cancelled(self) -> bool:
        """Whether the job's outputs are no longer read."""
        return self.progress.cancelled.is_set()


def schedule(job: Job) -> ScheduledJob:
    """Returns a job with no progress yet; its deadline counts from now."""
    return ScheduledJob(job, JobProgress(job.timeout_seconds))


def take_token(scheduled: ScheduledJob, token: Token, token_bytes: TokenBytes) -> list[OutputDelta]:
    """Adds a token to a job's text.

    Args:
        scheduled: the job; its progress changes.
        token: what the engine generated for it.
        token_bytes: the bytes of a token id.

    Returns:
        The new deltas: none while the text may be the beginning of a stop string.
    """
    job, progress = scheduled
    deltas = []
    if token.prompt is not None and job.echo is not None:
        deltas.append(_echo_delta(job.echo, scheduled, token.prompt))
    new_text = _append_token(scheduled, token, token_bytes)
    finish = "stop" if progress.text.is_stopped else token.finish
    if finish and not progress.text.is_stopped:
        new_text += detokenizer.flush(job.stops, progress.text)
    if new_text or finish:
        logprobs = _release_logprobs(progress, new_text, token_bytes)
        deltas.append(
            OutputDelta(
                job.choice_index,
                new_text,
                tuple(logprobs),
                progress.num_tokens,
                finish,
                progress.num_cached_tokens,
            )
        )
    return deltas


def _echo_delta(echo: str, scheduled: ScheduledJob, prompt: PromptResult) -> OutputDelta:
    """Returns the prompt's text with its log probabilities, which begin at the second token."""
    job, progress = scheduled
    first, *others = job.request.prompt
    logprobs = [TokenLogprob(first, None)]
    for token, each in zip(others, prompt.logprobs, strict=False):
        logprobs.append(TokenLogprob(token, each.logprob, each.top))
    return OutputDelta(
        job.choice_index, echo, tuple(logprobs), num_cached_tokens=progress.num_cached_tokens
    )


def _append_token(scheduled: ScheduledJob, token: Token, token_bytes: TokenBytes) -> str:
    """Returns the text that is certain after a token; a stop token adds none."""
    job, progress = scheduled
    if token.id is None:
        return ""
    progress.num_tokens += 1
    if token.id in job.request.stop_ids:
        return ""
    data = token_bytes(token.id)
    progress.text, new_text = detokenizer.push(job.stops, progress.text, data)
    progress.pending_logprobs.append(TokenLogprob(token.id, token.logprob, token.top))
    return new_text


def _release_logprobs(
    progress: JobProgress, new_text: str, token_bytes: TokenBytes
) -> list[TokenLogprob]:
    """Returns the tokens behind a text; of a text that was cut, those that begin before the cut."""
    progress.num_text_bytes += len(new_text.encode())
    pending = progress.pending_logprobs
    progress.pending_logprobs = []
    if not progress.text.is_stopped:
        progress.num_token_bytes += sum(len(token_bytes(each.id)) for each in pending)
        return pending
    released = []
    for each in pending:
        if progress.num_token_bytes >= progress.num_text_bytes:
            break
        released.append(each)
        progress.num_token_bytes += len(token_bytes(each.id))
    return released
