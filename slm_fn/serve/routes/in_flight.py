"""Requests in progress: their jobs are queued on entry of `in_flight`, and ended on its exit.

Invariant: however a request ends, its jobs are cancelled, its unused tokens are returned and its
usage is logged exactly once.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from litestar import Request as HttpRequest

from slm_fn.core import random
from slm_fn.infer.constraints import Constraint
from slm_fn.infer.request import Request
from slm_fn.serve.middleware import access_log, auth
from slm_fn.serve.protocol import responses
from slm_fn.serve.protocol.errors import ApiError
from slm_fn.serve.protocol.params import GenerationParams
from slm_fn.serve.protocol.prompts import TokenizedPrompt
from slm_fn.serve.protocol.responses import EndpointFormat
from slm_fn.serve.scheduler.jobs import Job, OutputQueue, ScheduledJob
from slm_fn.serve.services import Services


class GenerationInput(NamedTuple):
    """What a request generates: checked parameters, tokenized prompts and a compiled grammar."""

    params: GenerationParams
    prompts: Sequence[TokenizedPrompt]
    constraint: Constraint | None = None

    @property
    def num_prompt_tokens(self) -> int:
        """The tokens of all prompts."""
        return sum(len(prompt.ids) for prompt in self.prompts)


@dataclass
class Outcome:
    """How a request ended, for the access log.

    Attributes:
        finish: a finish reason, `failed` or `cancelled`; the last until a handler records another.
        reply_texts: the text of each choice, if replies are logged.
    """

    finish: str = "cancelled"
    reply_texts: list[str] | None = None


class InFlightRequest(NamedTuple):
    """A request in progress.

    Attributes:
        endpoint: the format of its response.
        head: the fields that every chunk of its response has.
        params: the parameters of the generation.
        jobs: one per choice, in the order of their indices.
        outputs: receives the deltas of all jobs.
        num_prompt_tokens: tokens of all prompts.
        num_reserved_tokens: tokens taken from the client's budget.
        outcome: how the request ended.
    """

    endpoint: EndpointFormat
    head: dict[str, Any]
    params: GenerationParams
    jobs: Sequence[ScheduledJob]
    outputs: OutputQueue
    num_prompt_tokens: int
    num_reserved_tokens: int
    outcome: Outcome

    @property
    def num_completion_tokens(self) -> int:
        """The tokens generated so far."""
        return sum(scheduled.progress.num_tokens for scheduled in self.jobs)

    def usage(self) -> dict[str, Any]:
        """Returns the `usage` of the response."""
        first_choices = self.jobs[:: self.params.num_choices]  # one per prompt
        num_cached = sum(scheduled.progress.num_cached_tokens for scheduled in first_choices)
        return responses.usage(self.num_prompt_tokens, self.num_completion_tokens, num_cached)


@asynccontextmanager
async def in_flight(
    services: Services,
    http_request: HttpRequest[Any, Any, Any],
    endpoint: EndpointFormat,
    generation: GenerationInput,
) -> AsyncIterator[InFlightRequest]:
    """Submits the jobs of a request on entry and finalizes it on exit.

    Raises:
        ApiError: 429 if the queue is full or the token budget is spent; 503 if not ready.
    """
    client_id = auth.client_id(http_request)
    request = submit(services, client_id, endpoint, generation)
    try:
        yield request
    finally:
        finalize(services, client_id, request, access_log.get_record(http_request.scope))


def submit(
    services: Services, client_id: str, endpoint: EndpointFormat, generation: GenerationInput
) -> InFlightRequest:
    """Reserves the tokens of a request and queues its jobs, all or none.

    Raises:
        ApiError: see `in_flight`.
    """
    outputs = OutputQueue()
    jobs = _make_jobs(services, client_id, outputs, generation)
    num_prompt_tokens = generation.num_prompt_tokens
    max_new_tokens = sum(job.request.max_tokens for job in jobs)
    num_reserved = services.token_budget.reserve(client_id, num_prompt_tokens + max_new_tokens)
    try:
        scheduled_jobs = services.worker.submit(jobs)
    except ApiError:
        services.token_budget.give_back(client_id, num_reserved)
        raise
    head = {
        "id": f"{endpoint.id_prefix}-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": services.config.name,
        "system_fingerprint": services.fingerprint,
    }
    return InFlightRequest(
        endpoint=endpoint,
        head=head,
        params=generation.params,
        jobs=scheduled_jobs,
        outputs=outputs,
        num_prompt_tokens=num_prompt_tokens,
        num_reserved_tokens=num_reserved,
        outcome=Outcome(),
    )


def _make_jobs(
    services: Services, client_id: str, outputs: OutputQueue, generation: GenerationInput
) -> list[Job]:
    """Returns a job for every choice of every prompt."""
    params = generation.params
    jobs: list[Job] = []
    for prompt in generation.prompts:
        echo = services.model.tokenizer.decode(prompt.ids) if params.echo else None
        for choice in range(params.num_choices):
            job = Job(
                choice_index=len(jobs),
                request=_engine_request(services, generation, prompt, choice),
                outputs=outputs,
                stops=params.stops,
                echo=echo,
                client_id=client_id,
                timeout_seconds=services.config.timeout,
            )
            jobs.append(job)
    return jobs


def _engine_request(
    services: Services, generation: GenerationInput, prompt: TokenizedPrompt, choice: int
) -> Request:
    params = generation.params
    return Request(
        prompt=tuple(prompt.ids),
        sampling=params.sampling,
        seed=params.seed if choice == 0 else random.fold_in(params.seed, choice),
        max_tokens=_max_new_tokens(services, len(prompt.ids), params.max_tokens),
        stop_ids=services.model.stop_ids,
        logprobs=params.top_logprobs,
        prompt_logprobs=params.echo and params.top_logprobs is not None,
        constraint=generation.constraint,
        num_shared=prompt.num_shared,
    )


def _max_new_tokens(services: Services, num_prompt_tokens: int, requested: int | None) -> int:
    """Returns the smallest of the request's, the context's and the server's own limit."""
    limits = [services.model.config.context - num_prompt_tokens]
    if services.config.max_reply:
        limits.append(services.config.max_reply)
    if requested is not None:
        limits.append(requested)
    return min(limits)


def finalize(
    services: Services, client_id: str, request: InFlightRequest, record: access_log.Record
) -> None:
    """Cancels the jobs that have not ended, returns unused tokens, and logs the usage."""
    for scheduled in request.jobs:
        scheduled.progress.cancelled.set()
    num_completion_tokens = request.num_completion_tokens
    num_used_tokens = request.num_prompt_tokens + num_completion_tokens
    services.token_budget.give_back(client_id, request.num_reserved_tokens - num_used_tokens)
    record["prompt_tokens"] = request.num_prompt_tokens
    record["completion_tokens"] = num_completion_tokens
    record["finish"] = request.outcome.finish
    if request.outcome.reply_texts is not None:
        record["reply"] = request.outcome.reply_texts
