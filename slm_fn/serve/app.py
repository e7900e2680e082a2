"""The server: OpenAI's chat endpoints, health, and the chat page, by Litestar.

Invariant: no handler computes; a client that leaves cancels its generation within one token.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
from litestar import Litestar, Request, Response, get, post
from litestar.datastructures import MutableScopeHeaders, State
from litestar.exceptions import HTTPException
from litestar.params import PathParameter
from litestar.response import Stream
from litestar.static_files import create_static_files_router
from litestar.types import Message, Scope

from slm_fn.infer.decode import check_prompt
from slm_fn.pipeline.model import Model
from slm_fn.serve import protocol
from slm_fn.serve.protocol import ApiError, ChatRequest, Order
from slm_fn.serve.worker import Job, Worker
from slm_fn.text import chat

STATIC = Path(__file__).parent / "static"
MAX_BODY = 1 << 20
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def create_app(model: Model, name: str, max_active: int = 4, max_waiting: int = 16) -> Litestar:
    """An application that serves one model under `name`."""
    worker = Worker(model, max_active, max_waiting)

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.close()

    state = State({"model": model, "name": name, "worker": worker, "created": int(time.time())})
    return Litestar(
        route_handlers=[
            completions,
            models,
            one_model,
            health,
            create_static_files_router(path="/", directories=[STATIC], html_mode=True, include_in_schema=False),
        ],
        state=state,
        lifespan=[lifespan],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, Exception: _any_error},
        request_max_body_size=MAX_BODY,
        before_send=[_add_headers],
        openapi_config=None,
    )


async def _add_headers(message: Message, scope: Scope) -> None:
    """Every answer carries the security headers: pages, files and errors too."""
    if message["type"] == "http.response.start":
        headers = MutableScopeHeaders(message)
        for name, value in HEADERS.items():
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
async def completions(request: Request[Any, Any, Any], state: State) -> Response[Any]:
    """A reply to a conversation, whole or as a stream of server-sent events."""
    asked = _decode(await request.body())
    _check_name(state, asked.model or state.name)
    job = _job(state, protocol.understand(asked, state.model.generation.sampling))
    state.worker.submit(job)
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": state.name}
    if asked.stream:
        with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return Stream(_events(head, job, with_usage), media_type="text/event-stream", headers=headers)
    return Response(await _whole(head, job, request))


def _decode(body: bytes) -> ChatRequest:
    try:
        return msgspec.json.decode(body, type=ChatRequest)
    except msgspec.ValidationError as error:
        where = str(error).partition("`$.")[2].partition("`")[0] or None
        raise ApiError(400, str(error), "invalid_value", where) from None
    except msgspec.DecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error}", "invalid_json") from None


def _check_name(state: State, name: str) -> None:
    if name != state.name:
        raise ApiError(
            404, f"the model {name!r} does not exist; this server has {state.name!r}", "model_not_found", "model"
        )


def _job(state: State, order: Order) -> Job:
    model: Model = state.model
    try:
        prompt = chat.render(model.generation.template, model.tokenizer, order.messages, reply=True).ids
    except ValueError as error:
        raise ApiError(400, str(error), "invalid_value", "messages") from None
    try:
        check_prompt(len(prompt), model.config.context, order.max_tokens or 0)
    except ValueError as error:
        raise ApiError(400, str(error), "context_length_exceeded", "messages") from None
    return Job(order, prompt, order.seed if order.seed is not None else secrets.randbits(48))


async def _whole(head: dict[str, Any], job: Job, request: Request[Any, Any, Any]) -> dict[str, Any]:
    """Wait for the last piece; give up when the client has left."""
    import asyncio

    said: list[str] = []
    gone = asyncio.create_task(_left(request))
    try:
        while True:
            piece_task = asyncio.ensure_future(job.pieces.get())
            await asyncio.wait({piece_task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not piece_task.done():
                piece_task.cancel()
                raise ApiError(499, "the client closed the connection")
            piece = piece_task.result()
            if isinstance(piece, Exception):
                raise piece
            said.append(piece.text)
            if piece.finish is not None:
                used = protocol.usage(len(job.prompt), piece.num_tokens)
                return protocol.reply(head, "".join(said), piece.finish, used)
    finally:
        gone.cancel()
        job.cancelled.set()


async def _left(request: Request[Any, Any, Any]) -> None:
    """Return once the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(head: dict[str, Any], job: Job, with_usage: bool) -> AsyncIterator[bytes]:
    """The stream's events. Every round awaits the queue, so a client that left ends it at once."""
    try:
        yield protocol.chunk(head, {"role": "assistant", "content": ""}, with_usage=with_usage)
        while True:
            piece = await job.pieces.get()
            if isinstance(piece, Exception):
                yield protocol.event(_as_api_error(piece).body())
                return
            if piece.text:
                yield protocol.chunk(head, {"content": piece.text}, with_usage=with_usage)
            if piece.finish is not None:
                yield protocol.chunk(head, {}, piece.finish, with_usage=with_usage)
                if with_usage:
                    yield protocol.last_chunk(head, protocol.usage(len(job.prompt), piece.num_tokens))
                yield protocol.DONE
                return
    finally:
        job.cancelled.set()


def _as_api_error(error: Exception) -> ApiError:
    return error if isinstance(error, ApiError) else ApiError(500, "the generation failed; see the server's log")


def _api_error(request: Request[Any, Any, Any], error: ApiError) -> Response[Any]:
    headers = {"Retry-After": "1"} if error.status in (429, 503) else {}
    if error.status >= 500 and error.status != 503:
        headers["x-should-retry"] = "false"
    return Response(error.body(), status_code=error.status, headers=headers)


def _http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    return _api_error(request, ApiError(error.status_code, error.detail or "the request failed"))


def _any_error(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    request.app.logger.error("request failed: %s", type(error).__name__, exc_info=error) if request.app.logger else None
    return _api_error(request, ApiError(500, "the server failed on this request; see its log"))
