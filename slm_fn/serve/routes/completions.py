"""The routes of chat and text completions: a complete response, or a stream of events.

Invariant: no handler computes; it waits for the worker's outputs and for the client's disconnect.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.params import Body, SkipValidation
from litestar.response import Stream

from slm_fn.infer.constraints import Constraint
from slm_fn.serve.middleware import access_log, auth
from slm_fn.serve.protocol import params as parameters
from slm_fn.serve.protocol import prompts, responses, unsupported
from slm_fn.serve.protocol.errors import BODY_EXCEPTION_HANDLERS, ApiError
from slm_fn.serve.protocol.logprobs import TextOffset, TokenFormatter
from slm_fn.serve.protocol.params import GenerationParams
from slm_fn.serve.protocol.requests import ChatRequest, CompletionRequest
from slm_fn.serve.protocol.responses import (
    CHAT_FORMAT,
    COMPLETION_FORMAT,
    EndpointFormat,
    OutputDelta,
)
from slm_fn.serve.routes.in_flight import GenerationInput, InFlightRequest, in_flight
from slm_fn.serve.routes.streaming import stream_events
from slm_fn.serve.services import Services

HttpRequest = Request[Any, Any, Any]
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@post(
    ["/v1/chat/completions", "/chat/completions"],
    status_code=200,
    exception_handlers=BODY_EXCEPTION_HANDLERS,
    tags=["completions"],
)
async def chat(
    request: HttpRequest,
    services: NamedDependency[SkipValidation[Services]],
    data: Annotated[ChatRequest, Body()],
) -> Response[Any]:
    """The reply to a conversation, complete or as a stream of server-sent events."""
    params = await _parse_params(request, services, data)
    messages = prompts.parse_messages(data.messages)
    # On a thread: long texts take seconds.
    prompt = await asyncio.to_thread(prompts.tokenize_chat, services.model, messages, params)
    if services.config.log_text:
        access_log.get_record(request.scope)["prompt"] = messages
    constraint = await _compile_grammar(request, services, params)
    generation = GenerationInput(params, [prompt], constraint)
    return await _respond(request, services, CHAT_FORMAT, generation, bool(data.stream))


@post(
    ["/v1/completions", "/completions"],
    status_code=200,
    exception_handlers=BODY_EXCEPTION_HANDLERS,
    tags=["completions"],
)
async def text(
    request: HttpRequest,
    services: NamedDependency[SkipValidation[Services]],
    data: Annotated[CompletionRequest, Body()],
) -> Response[Any]:
    """The continuation of a text or of token ids, complete or as a stream of server-sent events."""
    params = await _parse_params(request, services, data)
    raw_prompts = prompts.parse_prompts(data.prompt)
    services.worker.check_capacity(len(raw_prompts) * params.num_choices)
    tokenized = await asyncio.to_thread(
        prompts.tokenize_prompts, services.model, raw_prompts, params
    )
    if services.config.log_text:
        access_log.get_record(request.scope)["prompt"] = raw_prompts
    constraint = await _compile_grammar(request, services, params)
    generation = GenerationInput(params, tokenized, constraint)
    return await _respond(request, services, COMPLETION_FORMAT, generation, bool(data.stream))


async def _parse_params(
    request: HttpRequest, services: Services, data: ChatRequest | CompletionRequest
) -> GenerationParams:
    services.check_model_name(data.model)
    # `data` was made from this object; Litestar keeps it, so the body is not parsed again.
    body = await request.json()
    unsupported.reject_unsupported(data, body)
    model = services.model
    params = parameters.parse_request(
        data, model.generation.sampling, model.config.vocab_size, services.config.max_choices
    )
    if not params.bad_words:
        return params
    words = await asyncio.to_thread(prompts.tokenize_bad_words, model, params.bad_words)
    return params._replace(sampling=msgspec.structs.replace(params.sampling, bad_words=words))


async def _compile_grammar(
    request: HttpRequest, services: Services, params: GenerationParams
) -> Constraint | None:
    if params.grammar is None:
        return None
    return await services.grammars.get(params.grammar, auth.client_id(request))


async def _respond(
    request: HttpRequest,
    services: Services,
    endpoint: EndpointFormat,
    generation: GenerationInput,
    is_stream: bool,
) -> Response[Any]:
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(
            in_flight(services, request, endpoint, generation)
        )
        if not is_stream:
            return Response(await _collect_response(request, services, running))
        if services.config.log_text:
            running.outcome.reply_texts = [""] * len(running.jobs)
        # The stream outlives this function, so it takes over finalizing the request.
        finalization = stack.pop_all()
        events = stream_events(request.scope, services.token_formatter, running, finalization)
        return Stream(events, media_type="text/event-stream", headers=STREAM_HEADERS)


async def _collect_response(
    request: HttpRequest, services: Services, running: InFlightRequest
) -> dict[str, Any]:
    """Waits for all choices.

    A handler is not notified when the client closes the connection, so it waits for that as well.

    Raises:
        ApiError: the client closed the connection, or a generation failed.
    """
    collecting = asyncio.create_task(_collect_outputs(running))
    disconnecting = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait({collecting, disconnecting}, return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            raise ApiError(499, "the client closed the connection")
        outputs = collecting.result()
    finally:
        collecting.cancel()
        disconnecting.cancel()
    choices = [_complete_choice(services.token_formatter, running, output) for output in outputs]
    running.outcome.finish = choices[0]["finish_reason"]
    if services.config.log_text:
        running.outcome.reply_texts = [output.text for output in outputs]
    return {
        **running.head,
        "object": running.endpoint.object_name,
        "choices": choices,
        "usage": running.usage(),
    }


async def _collect_outputs(running: InFlightRequest) -> list[OutputDelta]:
    """Returns the complete output of every choice, in the order of their indices."""
    deltas: list[list[OutputDelta]] = [[] for _ in running.jobs]
    num_open = len(running.jobs)
    while num_open:
        delta = await running.outputs.get()
        if isinstance(delta, Exception):
            raise delta
        deltas[delta.choice_index].append(delta)
        if delta.finish is not None:
            num_open -= 1
    return [responses.join_deltas(each) for each in deltas]


async def _wait_for_disconnect(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _complete_choice(
    formatter: TokenFormatter, running: InFlightRequest, output: OutputDelta
) -> dict[str, Any]:
    endpoint = running.endpoint
    logprobs = None
    if running.params.top_logprobs is not None:
        logprobs = endpoint.make_logprobs(formatter, output.logprobs, TextOffset())
    return endpoint.make_choice(output.choice_index, output.text, logprobs, output.finish)
