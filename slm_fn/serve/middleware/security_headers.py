"""The security headers and the request id of every response.

Invariant: files and errors carry them as well as replies.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

from litestar.datastructures import MutableScopeHeaders
from litestar.types import Message, Scope

from slm_fn.serve.config import ServeConfig

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
WIDGET_SUFFIXES = (".js", ".css")  # the widget loads these from pages of other origins

SendHook = Callable[[Message, Scope], Awaitable[None]]


def make_hook(config: ServeConfig) -> SendHook:
    """Returns the hook that adds the headers to a response before it is sent."""

    async def add_headers(message: Message, scope: Scope) -> None:
        if message["type"] != "http.response.start":
            return
        headers = MutableScopeHeaders.from_message(message)
        for name, value in SECURITY_HEADERS.items():
            headers[name] = value
        if config.cors and str(scope["path"]).endswith(WIDGET_SUFFIXES):
            headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        headers["x-request-id"] = f"req_{secrets.token_hex(12)}"

    return add_headers
