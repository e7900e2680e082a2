"""The time limit for receiving a request's body.

Invariant: no request waits for its body longer than the limit, however slowly the bytes arrive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send
from litestar.types.asgi_types import HTTPReceiveMessage, WebSocketReceiveMessage

from slm_fn.serve.config import ServeConfig
from slm_fn.serve.middleware import access_log
from slm_fn.serve.protocol.errors import ApiError


def make_middleware(config: ServeConfig) -> Callable[[ASGIApp], ASGIApp]:
    """Returns a middleware that answers 408 to a body that arrives too slowly."""

    def wrap(app: ASGIApp) -> ASGIApp:
        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != ScopeType.HTTP:
                await app(scope, receive, send)
                return
            access_log.get_record(scope)  # the request's duration is counted from here
            reader = _TimedReader(receive, config.body_timeout)
            await app(scope, reader.receive, send)

        return call

    return wrap


class _TimedReader:
    """An ASGI `receive` with a deadline until the body is complete."""

    def __init__(self, receive: Receive, timeout_seconds: float) -> None:
        self._receive = receive
        self._timeout_seconds = timeout_seconds
        self._deadline = asyncio.get_running_loop().time() + timeout_seconds
        self._is_complete = False

    async def receive(self) -> HTTPReceiveMessage | WebSocketReceiveMessage:
        if self._is_complete:
            # Only the client's disconnect can follow, which has no deadline.
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            text = f"the body did not arrive within {self._timeout_seconds:g} seconds"
            raise ApiError(408, text, "timeout") from None
        if message["type"] == "http.disconnect":
            # Litestar would report it as an error of the server.
            raise ApiError(499, "the client closed the connection")
        self._is_complete = not message.get("more_body", False)
        return message
