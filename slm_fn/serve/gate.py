"""Who may come in: names and origins of this server, API keys, rates, and headers that keep pages apart.

Invariant: a key is read from the Authorization header alone; whatever stands in a query is neither read nor logged.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from litestar.config.cors import CORSConfig
from litestar.connection import ASGIConnection, Request
from litestar.datastructures import MutableScopeHeaders
from litestar.handlers import BaseRouteHandler
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult
from litestar.middleware.rate_limit import RateLimitConfig
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from slm_fn.serve import access
from slm_fn.serve import keys as api_keys
from slm_fn.serve.config import ServeConfig
from slm_fn.serve.errors import ApiError
from slm_fn.serve.keys import StoredKey

PUBLIC = "public"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
SHARED = (".js", ".css")  # what the widget loads, where pages of other origins are allowed


def at_home(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Refuse what a foreign page sends through its visitor's browser: another origin, or a name rebound to here.

    By hand, since Litestar's AllowedHosts answers in a shape that is not OpenAI's, and its CORS lets everything
    through that is no preflight.

    Raises:
        ApiError: 403; 404 for a path that no file system takes, with which Litestar's static files would fail.
    """
    path = connection.scope["path"]
    if "\0" in path or any(len(part.encode(errors="replace")) > 255 for part in path.split("/")) or len(path) > 1024:
        raise ApiError(404, "Not Found")
    config: ServeConfig = connection.app.state.config
    host, origin = connection.headers.get("host", ""), connection.headers.get("origin")
    if config.hosts and hostname(host) not in config.hosts:
        raise ApiError(403, f"this server does not go by the name {host!r}", "unknown_host")
    listed = "*" in config.cors or origin in config.cors
    if origin is not None and not listed and origin.partition("://")[2] != host:
        raise ApiError(403, f"pages from {origin} may not use this server", "foreign_origin")


def hostname(host: str) -> str | None:
    """The name in a Host header, without its port.

    Example:
        >>> hostname("a.example:80"), hostname("[::1]:80"), hostname("[")
        ('a.example', '::1', None)
    """
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def cors(config: ServeConfig) -> CORSConfig | None:
    """What browsers are told about pages of the listed origins; cookies are never part of it."""
    if not config.cors:
        return None
    return CORSConfig(
        allow_origins=list(config.cors),
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type"],
        expose_headers=["x-request-id", "Retry-After"],
        max_age=600,
    )


class Bearer(AbstractAuthenticationMiddleware):
    """`Authorization: Bearer KEY` where the server has keys; routes marked public go without."""

    def __init__(self, app: ASGIApp, keys: Sequence[StoredKey]) -> None:
        super().__init__(app, exclude="^/schema", exclude_from_auth_key=PUBLIC)
        self.keys = keys

    async def authenticate_request(self, connection: ASGIConnection[Any, Any, Any, Any]) -> AuthenticationResult:
        """Whose key it is.

        Raises:
            ApiError: 401.
        """
        kind, _, key = connection.headers.get("authorization", "").partition(" ")
        if not key.strip() or kind.lower() != "bearer":
            raise ApiError(401, "this server wants an API key: send `Authorization: Bearer KEY`", "missing_api_key")
        name = api_keys.identify(self.keys, key.strip())
        if name is None:
            raise ApiError(401, "this API key is not known here", "invalid_api_key")
        return AuthenticationResult(user=name, auth=None)


def who(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    """Whom limits and fairness go by: the key's name, or the address. No header that a client writes has a say."""
    name = connection.scope.get("user")
    return f"key {name}" if name else f"address {connection.client.host if connection.client else ''}"


def rates(config: ServeConfig) -> list[Any]:
    """The middleware that bounds requests per minute, if they are bounded."""
    if not config.requests_per_minute:
        return []
    limit = RateLimitConfig(
        rate_limit=("minute", config.requests_per_minute), exclude_opt_key=PUBLIC, identifier_for_request=_who
    )
    return [limit.middleware]


def _who(request: Request[Any, Any, Any]) -> str:
    return who(request)


async def dress(message: Message, scope: Scope) -> None:
    """Every response, errors and files included, carries the security headers and a number to ask about it by."""
    if message["type"] != "http.response.start":
        return
    headers = MutableScopeHeaders.from_message(message)
    for name, value in HEADERS.items():
        headers[name] = value
    if scope["litestar_app"].state.config.cors and str(scope["path"]).endswith(SHARED):
        headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    headers["x-request-id"] = f"req_{secrets.token_hex(12)}"


def patience(config: ServeConfig) -> Any:
    """A middleware that waits for a body no longer than told, whatever trickles in."""

    def wrap(app: ASGIApp) -> ASGIApp:
        async def patient(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            access.account(scope)  # its clock begins here
            late, whole = asyncio.get_running_loop().time() + config.body_timeout, False

            async def arriving() -> Any:
                nonlocal whole
                if whole:
                    return await receive()  # now it is for the client to leave, which may take as long as it wants
                try:
                    async with asyncio.timeout_at(late):
                        message = await receive()
                except TimeoutError:
                    text = f"the body did not arrive within {config.body_timeout:g} seconds"
                    raise ApiError(408, text, "timeout") from None
                if message["type"] == "http.disconnect":  # Litestar would call it an error of the server
                    raise ApiError(499, "the client closed the connection")
                whole = not message.get("more_body", False)
                return message

            await app(scope, arriving, send)

        return patient

    return wrap
