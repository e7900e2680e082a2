"""Chat and text completions: a request to jobs, their parts to a whole reply or to a stream of events.

Invariant: no handler computes; every round of a stream awaits its queue, so a client that left ends it at once.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
from litestar import Request, Response, post
from litestar.datastructures import State
from litestar.params import Body
from litestar.response import Stream

from slm_fn.core import random
from slm_fn.infer import request as requests
from slm_fn.pipeline.model import Model
from slm_fn.serve import access, gate, protocol, replies
from slm_fn.serve import prompts as prompts_of
from slm_fn.serve.config import ServeConfig
from slm_fn.serve.errors import BODY, FAILED, ApiError
from slm_fn.serve.prompts import Prompt
from slm_fn.serve.protocol import Order
from slm_fn.serve.replies import CHAT, DONE, PING, TEXT, Form, Part, Place
from slm_fn.serve.requests import ChatRequest, CompletionRequest
from slm_fn.serve.worker import Job, Pieces

Asked = Request[Any, Any, Any]
PING_SECONDS = 15


class Flight(NamedTuple):
    """A request under way: its jobs, where their parts come, how it is written, and what was reserved for it."""

    form: Form
    head: dict[str, Any]
    jobs: Sequence[Job]
    pieces: Pieces
    order: Order
    num_prompt: int
    reserved: int


@post(
    ["/v1/chat/completions", "/chat/completions"],
    status_code=200,
    exception_handlers=BODY,
    tags=["completions"],
)
async def chat(request: Asked, state: State, data: Annotated[ChatRequest, Body()]) -> Response[Any]:
    """A reply to a conversation, whole or as a stream of server-sent events."""
    order = await _understand(request, state, data)
    messages = protocol.messages(data.messages)
    prompt = await asyncio.to_thread(prompts_of.chat_prompt, state.model, messages, order)  # long texts take a while
    if state.config.log_text:
        access.account(request.scope)["prompt"] = messages
    return await _answer(request, state, CHAT, order, [prompt], bool(data.stream))


@post(
    ["/v1/completions", "/completions"],
    status_code=200,
    exception_handlers=BODY,
    tags=["completions"],
)
async def text(request: Asked, state: State, data: Annotated[CompletionRequest, Body()]) -> Response[Any]:
    """What comes behind a text or behind token ids, whole or as a stream of server-sent events."""
    order = await _understand(request, state, data)
    asked = protocol.prompts(data.prompt)
    state.worker.check(len(asked) * order.choices)
    prompts = await asyncio.to_thread(prompts_of.text_prompts, state.model, asked, order)
    if state.config.log_text:
        access.account(request.scope)["prompt"] = asked
    return await _answer(request, state, TEXT, order, prompts, bool(data.stream))


async def _understand(request: Asked, state: State, data: ChatRequest | CompletionRequest) -> Order:
    check_name(state, data.model or state.name)
    protocol.refuse_unknown(data, await request.json())
    config, model = state.config, state.model
    order = protocol.understand(data, model.generation.sampling, model.config.vocab_size, config.max_choices)
    if order.bad_words:
        words = await asyncio.to_thread(prompts_of.bad_words, model, order.bad_words)
        sampling = msgspec.structs.replace(order.sampling, bad_words=words)
        order = order._replace(sampling=sampling)
    return order


def check_name(state: State, name: str) -> None:
    """Refuse a model that is not here.

    Raises:
        ApiError: 404.
    """
    if name != state.name:
        message = f"the model {name!r} does not exist; this server has {state.name!r}"
        raise ApiError(404, message, "model_not_found", "model")


async def _answer(
    request: Asked, state: State, form: Form, order: Order, prompts: Sequence[Prompt], streams: bool
) -> Response[Any]:
    constraint = order.grammar and await state.grammars.ready(order.grammar, gate.who(request))
    flight = _take_off(request, state, form, order, prompts, constraint)
    if streams:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return Stream(_events(request, state, flight), media_type="text/event-stream", headers=headers)
    return Response(await _whole(request, state, flight))


def _take_off(
    request: Asked, state: State, form: Form, order: Order, prompts: Sequence[Prompt], constraint: Any
) -> Flight:
    """Make the jobs of every choice of every prompt, pay for them, and queue them all or none."""
    config: ServeConfig = state.config
    model: Model = state.model
    who, pieces = gate.who(request), Pieces()
    jobs: list[Job] = []
    for ids, shared in prompts:
        for choice in range(order.choices):
            asked = requests.Request(
                tuple(ids),
                order.sampling,
                order.seed if choice == 0 else random.fold_in(order.seed, choice),
                _room(config, model, len(ids), order.max_tokens),
                model.stop_ids,
                order.logprobs,
                order.echo and order.logprobs is not None,
                constraint,
                shared,
            )
            echo = model.tokenizer.decode(ids) if order.echo else None
            jobs.append(Job(len(jobs), asked, pieces, order.stops, echo, who, config.timeout))
    num_prompt = sum(len(prompt.ids) for prompt in prompts)
    reserved = state.rate.take(who, num_prompt + sum(job.request.max_tokens for job in jobs))
    try:
        state.worker.submit(jobs)
    except ApiError:
        state.rate.give_back(who, reserved)
        raise
    head = {
        "id": f"{form.prefix}-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": state.name,
        "system_fingerprint": state.fingerprint,
    }
    return Flight(form, head, jobs, pieces, order, num_prompt, reserved)


def _room(config: ServeConfig, model: Model, num_prompt: int, asked: int | None) -> int:
    """How many tokens a reply may have: what was asked, as far as the context and the server's own limit go."""
    limits = [model.config.context - num_prompt, *([config.max_reply] if config.max_reply else [])]
    return min(limits if asked is None else [asked, *limits])


def _land(request: Asked, state: State, flight: Flight, finish: str) -> dict[str, Any]:
    """End what is left of a request, give back what it did not use, and tell the log; returns the usage."""
    for job in flight.jobs:
        job.cancelled.set()
    written = sum(job.num_tokens for job in flight.jobs)
    cached = sum(job.cached for job in flight.jobs[:: flight.order.choices])
    state.rate.give_back(gate.who(request), flight.reserved - flight.num_prompt - written)
    account = access.account(request.scope)
    account |= {"prompt_tokens": flight.num_prompt, "completion_tokens": written, "finish": finish}
    return replies.usage(flight.num_prompt, written, cached)


async def _whole(request: Asked, state: State, flight: Flight) -> dict[str, Any]:
    """Wait for the last part; give up when the client has left, which nobody tells a handler that does not ask."""
    reading = asyncio.create_task(_read(state, flight))
    leaving = asyncio.create_task(_left(request))
    finish = "cancelled"
    try:
        await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            raise ApiError(499, "the client closed the connection")
        choices = reading.result()
        finish = choices[0]["finish_reason"]
        if state.config.log_text:
            texts = [choice["text"] if flight.form is TEXT else choice["message"]["content"] for choice in choices]
            access.account(request.scope)["reply"] = texts
        usage = _land(request, state, flight, finish)
        return {**flight.head, "object": flight.form.whole, "choices": choices, "usage": usage}
    finally:
        reading.cancel()
        leaving.cancel()
        if finish == "cancelled":
            _land(request, state, flight, finish)


async def _read(state: State, flight: Flight) -> list[dict[str, Any]]:
    """Every choice, whole, in the order of their numbers."""
    parts: list[list[Part]] = [[] for _ in flight.jobs]
    left = len(flight.jobs)
    while left:
        part = await flight.pieces.get()
        if isinstance(part, Exception):
            raise part
        parts[part.number].append(part)
        left -= part.finish is not None
    out = []
    for index, several in enumerate(parts):
        said = [token for part in several for token in part.said]
        logprobs = None if flight.order.logprobs is None else flight.form.logprobs(state.names, said)
        written = "".join(part.text for part in several)
        out.append(flight.form.choice(index, written, logprobs, several[-1].finish))
    return out


async def _left(request: Asked) -> None:
    """Return once the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(request: Asked, state: State, flight: Flight) -> AsyncIterator[bytes]:
    """The stream's events."""
    form, left, finish = flight.form, len(flight.jobs), "cancelled"
    told = {"usage": None} if flight.order.with_usage else {}
    places, written = [Place() for _ in flight.jobs], [""] * left
    try:
        if form.opens:
            for index in range(left):
                yield replies.chunk(form, flight.head, [replies.opening(index)], told)
        while left:
            try:
                async with asyncio.timeout(PING_SECONDS):
                    part = await flight.pieces.get()
            except TimeoutError:
                yield PING  # proxies end what is silent
                continue
            if isinstance(part, Exception):
                finish = "failed"
                error = part if isinstance(part, ApiError) else FAILED
                yield replies.event(error.body())  # the status was sent long ago; without [DONE] it is no answer
                return
            for choice in _choices(state, flight, part, places):
                yield replies.chunk(form, flight.head, [choice], told)
            if state.config.log_text:
                written[part.number] += part.text
            left -= part.finish is not None
            finish = part.finish if not left and part.finish else finish
        usage = _land(request, state, flight, finish)
        if flight.order.with_usage:
            yield replies.chunk(form, flight.head, [], {"usage": usage})
        yield DONE
    finally:
        if state.config.log_text:
            access.account(request.scope)["reply"] = written
        if finish in ("cancelled", "failed"):
            _land(request, state, flight, finish)
        if finish == "cancelled":
            access.write(request.scope, status=499)


def _choices(state: State, flight: Flight, part: Part, places: list[Place]) -> list[dict[str, Any]]:
    """The deltas of one part: its text with its tokens, and at last why it ended, in a delta of its own."""
    form, logprobs = flight.form, None
    if flight.order.logprobs is not None and part.said:
        place = (places[part.number],) if form is TEXT else ()
        logprobs = form.logprobs(state.names, part.said, *place)
    if part.finish is None:
        return [form.delta(part.number, part.text, logprobs, None)]
    if not part.text:
        return [form.delta(part.number, "", logprobs, part.finish)]
    return [form.delta(part.number, part.text, logprobs, None), form.delta(part.number, "", None, part.finish)]
