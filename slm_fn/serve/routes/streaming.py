"""A request in progress as a stream of server-sent events.

Invariant: a stream ends with `[DONE]` only if all of its choices were completed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from litestar.types import Scope

from slm_fn.serve.middleware import access_log
from slm_fn.serve.protocol import responses
from slm_fn.serve.protocol.errors import INTERNAL_ERROR, ApiError
from slm_fn.serve.protocol.logprobs import TextOffset, TokenFormatter
from slm_fn.serve.protocol.responses import DONE_EVENT, PING_COMMENT, OutputDelta
from slm_fn.serve.routes.in_flight import InFlightRequest
from slm_fn.serve.scheduler.jobs import OutputQueue

PING_SECONDS = 15  # proxies close connections that are silent for longer

Choice = dict[str, Any]


async def stream_events(
    scope: Scope,
    formatter: TokenFormatter,
    request: InFlightRequest,
    finalization: AsyncExitStack,
) -> AsyncIterator[bytes]:
    """Yields the events of a stream.

    Args:
        scope: of the HTTP request; its line of the access log is written if the client leaves.
        formatter: converts tokens to text.
        request: the request; its outcome changes.
        finalization: finalizes the request; left when the last choice has ended or the client left.
    """
    include_usage = request.params.include_usage
    try:
        async with finalization:
            async for event in _reply_events(formatter, request):
                yield event
        if request.outcome.finish == "failed":
            return
        if include_usage:
            usage = {"usage": request.usage()}
            yield responses.encode_chunk(request.endpoint, request.head, [], usage)
        yield DONE_EVENT
    finally:
        if request.outcome.finish == "cancelled":
            access_log.write_line(scope, status=499)


async def _reply_events(
    formatter: TokenFormatter, request: InFlightRequest
) -> AsyncIterator[bytes]:
    """Yields the events of the choices, and records the outcome."""
    outcome = request.outcome
    num_open = len(request.jobs)
    offsets = [TextOffset() for _ in request.jobs]
    if request.endpoint.has_role_delta:
        for index in range(num_open):
            yield _encode(request, responses.role_delta(index))
    while num_open:
        output = await _next_output(request.outputs)
        if output is None:
            yield PING_COMMENT
        elif isinstance(output, Exception):
            outcome.finish = "failed"
            # The status was sent long ago; a stream without [DONE] is an error for clients.
            yield _encode_error(output)
            return
        else:
            for choice in _delta_choices(formatter, request, output, offsets[output.choice_index]):
                yield _encode(request, choice)
            if outcome.reply_texts is not None:
                outcome.reply_texts[output.choice_index] += output.text
            if output.finish is not None:
                num_open -= 1
            if not num_open and output.finish is not None:
                outcome.finish = output.finish


async def _next_output(outputs: OutputQueue) -> OutputDelta | Exception | None:
    """Returns the next output; None if there is none for `PING_SECONDS`."""
    try:
        async with asyncio.timeout(PING_SECONDS):
            return await outputs.get()
    except TimeoutError:
        return None


def _encode(request: InFlightRequest, choice: Choice) -> bytes:
    usage = {"usage": None} if request.params.include_usage else {}
    return responses.encode_chunk(request.endpoint, request.head, [choice], usage)


def _encode_error(error: Exception) -> bytes:
    api_error = error if isinstance(error, ApiError) else INTERNAL_ERROR
    return responses.encode_event(api_error.body())


def _delta_choices(
    formatter: TokenFormatter, request: InFlightRequest, output: OutputDelta, offset: TextOffset
) -> Sequence[Choice]:
    """Returns the deltas of an output: text and finish reason are in deltas of their own."""
    endpoint = request.endpoint
    index = output.choice_index
    logprobs = None
    if request.params.top_logprobs is not None and output.logprobs:
        logprobs = endpoint.make_logprobs(formatter, output.logprobs, offset)
    if output.finish is None:
        return [endpoint.make_delta_choice(index, output.text, logprobs, None)]
    if not output.text:
        return [endpoint.make_delta_choice(index, "", logprobs, output.finish)]
    return [
        endpoint.make_delta_choice(index, output.text, logprobs, None),
        endpoint.make_delta_choice(index, "", None, output.finish),
    ]
