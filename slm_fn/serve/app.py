"""The server: OpenAI's chat endpoints, health, and the chat page, by Litestar.

Invariant: no handler computes; a client that leaves cancels its generation within one token.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from litestar import Litestar, Request, Response, get, post
from litestar.connection import ASGIConnection
from litestar.datastructures import MutableScopeHeaders, State
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler
from litestar.params import PathParameter
from litestar.response import Stream
from litestar.static_files import create_static_files_router
from litestar.types import Message, Scope

from slm_fn.infer.decode import ContextOverflow, check_prompt
from slm_fn.pipeline import talk
from slm_fn.pipeline.model import Model
from slm_fn.serve import protocol
from slm_fn.serve.protocol import ApiError, Order
from slm_fn.serve.worker import Job, Worker

log = logging.getLogger(__name__)
STATIC = Path(__file__).parent / "static"
MAX_BODY = 1 << 20
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
Asked = Request[Any, Any, Any]


def create_app(
    model: Model, name: str, max_active: int = 4, max_waiting: int = 16, hosts: Collection[str] = ()
) -> Litestar:
    """An application that serves one model under `name`.

    Args:
        max_active: generations that take turns.
        max_waiting: generations that may wait for a turn; more are told to come again.
        hosts: names this server goes by; requests to any other are refused. None given: any name.
    """
    worker = Worker(max_active, max_waiting)

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        worker.start()
        yield
        await asyncio.to_thread(worker.close)

    page = create_static_files_router(path="/", directories=[STATIC], html_mode=True, include_in_schema=False)
    return Litestar(
        route_handlers=[completions, models, one_model, health, page],
        state=State({"model": model, "name": name, "worker": worker, "hosts": hosts, "created": int(time.time())}),
        lifespan=[lifespan],
        guards=[at_home],
        before_send=[dress],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, Exception: _any_error},
        request_max_body_size=MAX_BODY,
        openapi_config=None,
        logging_config=None,
    )


def at_home(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Refuse what a foreign page sends through its visitor's browser: another origin, or a name rebound to here.

    Raises:
        ApiError: 403.
    """
    host, origin = connection.headers.get("host", ""), connection.headers.get("origin")
    hosts = connection.app.state.hosts
    if hosts and _hostname(host) not in hosts:
        raise ApiError(403, f"this server does not go by the name {host!r}", "unknown_host")
    if origin is not None and origin.partition("://")[2] != host:
        raise ApiError(403, f"pages from {origin} may not use this server", "foreign_origin")


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


async def dress(message: Message, _: Scope) -> None:
    """Every response, errors and files included, carries the security headers and a number to ask about it by."""
    if message["type"] == "http.response.start":
        headers = MutableScopeHeaders.from_message(message)
        for name, value in (*HEADERS.items(), ("x-request-id", f"req_{secrets.token_hex(12)}")):
            headers[name] = value


@get("/health")
async def health(state: State) -> dict[str, Any]:
    """Alive, and how many generations are active; never waits for the worker."""
    return {"status": "ok", "model": state.name, "active": state.worker.active}


@get("/v1/models")
async def models(state: State) -> dict[str, Any]:
    """The models there are: one."""
    return protocol.models([state.name], state.created, state.model.config.context)


@get("/v1/models/{model_id:str}")
async def one_model(state: State, model_id: Annotated[str, PathParameter()]) -> dict[str, Any]:
    """That model by name."""
    _check_name(state, model_id)
    return protocol.model(state.name, state.created, state.model.config.context)


@post("/v1/chat/completions", status_code=200)
async def completions(request: Asked, state: State) -> Response[Any]:
    """A reply to a conversation, whole or as a stream of server-sent events."""
    asked = protocol.decode(await request.body())
    _check_name(state, asked.model or state.name)
    order = protocol.understand(asked, state.model.generation.sampling)
    prompt = await asyncio.to_thread(_prompt, state.model, order)  # a long text takes the tokenizer a while
    seed = secrets.randbits(48) if order.seed is None else order.seed
    job = Job(partial(talk.write, state.model, prompt, order.sampling, seed, order.max_tokens, order.stops))
    state.worker.submit(job)
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": state.name}
    if asked.stream:
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return Stream(_events(head, job, len(prompt), with_usage), media_type="text/event-stream", headers=headers)
    return Response(await _whole(head, job, len(prompt), request))


def _check_name(state: State, name: str) -> None:
    if name != state.name:
        message = f"the model {name!r} does not exist; this server has {state.name!r}"
        raise ApiError(404, message, "model_not_found", "model")


def _prompt(model: Model, order: Order) -> list[int]:
    try:
        ids = talk.chat_ids(model, order.messages)
        check_prompt(len(ids), model.config.context, order.max_tokens or 0)
    except ContextOverflow as error:
        raise ApiError(400, str(error), "context_length_exceeded", "messages") from None
    except ValueError as error:
        raise ApiError(400, str(error), "invalid_value", "messages") from None
    return ids


async def _whole(head: dict[str, Any], job: Job, num_prompt: int, request: Asked) -> dict[str, Any]:
    """Wait for the last piece; give up when the client has left, which nobody tells a handler that does not ask."""
    reading = asyncio.create_task(_read(job))
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            raise ApiError(499, "the client closed the connection")
        text, num_tokens, finish = reading.result()
        return protocol.reply(head, text, finish, protocol.usage(num_prompt, num_tokens))
    finally:
        job.cancelled.set()
        reading.cancel()
        leaving.cancel()


async def _read(job: Job) -> tuple[str, int, str]:
    """The whole text, its tokens, and why it ended."""
    said: list[str] = []
    while True:
        piece = await job.pieces.get()
        if isinstance(piece, Exception):
            raise piece
        said.append(piece.text)
        if piece.finish is not None:
            return "".join(said), piece.num_tokens, piece.finish


async def _left(request: Asked) -> None:
    """Return once the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(head: dict[str, Any], job: Job, num_prompt: int, with_usage: bool) -> AsyncIterator[bytes]:
    """The stream's events. Every round awaits the queue, so a client that left ends it at once."""
    try:
        yield protocol.chunk(head, {"role": "assistant", "content": ""}, with_usage=with_usage)
        while True:
            piece = await job.pieces.get()
            if isinstance(piece, Exception):
                yield protocol.event(FAILED.body())  # the status was sent long ago; without [DONE] it is no answer
                return
            if piece.text:
                yield protocol.chunk(head, {"content": piece.text}, with_usage=with_usage)
            if piece.finish is not None:
                yield protocol.chunk(head, {}, piece.finish, with_usage=with_usage)
                if with_usage:
                    yield protocol.last_chunk(head, protocol.usage(num_prompt, piece.num_tokens))
                yield protocol.DONE
                return
    finally:
        job.cancelled.set()


FAILED = ApiError(500, "the server failed on this request; its log says why", "server_error")


def _api_error(_: Asked, error: ApiError) -> Response[Any]:
    headers = {"Retry-After": "1"} if error.status in (429, 503) else {}
    if error.status == 500:
        headers["x-should-retry"] = "false"
    return Response(error.body(), status_code=error.status, headers=headers)


def _http_error(request: Asked, error: HTTPException) -> Response[Any]:
    if error.status_code >= 500:
        return _any_error(request, error)
    return _api_error(request, ApiError(error.status_code, error.detail or "the request failed"))


def _any_error(request: Asked, error: Exception) -> Response[Any]:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _api_error(request, FAILED)
