"""Who sends a request: API keys, the client's identity, and the limit of requests per minute.

Invariant: a key is read from the Authorization header only; no query is read or logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from litestar.connection import ASGIConnection, Request
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult
from litestar.middleware.base import DefineMiddleware
from litestar.middleware.rate_limit import RateLimitConfig
from litestar.types import ASGIApp

from slm_fn.serve import api_keys
from slm_fn.serve.api_keys import StoredKey
from slm_fn.serve.config import ServeConfig
from slm_fn.serve.protocol.errors import ApiError

PUBLIC = "public"
"""The option of routes that require no key."""


class BearerAuth(AbstractAuthenticationMiddleware):
    """Requires `Authorization: Bearer KEY`, except for routes with the option `PUBLIC`."""

    def __init__(self, app: ASGIApp, keys: Sequence[StoredKey]) -> None:
        super().__init__(app, exclude="^/schema", exclude_from_auth_key=PUBLIC)
        self.keys = keys

    async def authenticate_request(
        self, connection: ASGIConnection[Any, Any, Any, Any]
    ) -> AuthenticationResult:
        """Returns the name of the key's owner.

        Raises:
            ApiError: 401.
        """
        scheme, _, key = connection.headers.get("authorization", "").partition(" ")
        if not key.strip() or scheme.lower() != "bearer":
            message = "this server requires an API key: send `Authorization: Bearer KEY`"
            raise ApiError(401, message, "missing_api_key")
        name = api_keys.identify(self.keys, key.strip())
        if name is None:
            raise ApiError(401, "the API key is not valid", "invalid_api_key")
        return AuthenticationResult(user=name, auth=None)


def make_auth_middleware(config: ServeConfig) -> list[DefineMiddleware]:
    """Returns the middleware that requires a key; empty if the server has no keys."""
    if not config.keys:
        return []
    return [DefineMiddleware(BearerAuth, keys=config.keys)]


def client_id(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    """Returns the identity that limits and fairness apply to: the key's name, or the address.

    No header of the request has any influence on it.
    """
    name = connection.scope.get("user")
    if name:
        return f"key {name}"
    host = connection.client.host if connection.client else ""
    return f"address {host}"


def make_rate_limit(config: ServeConfig) -> list[DefineMiddleware]:
    """Returns the middleware that limits requests per minute; empty without a limit."""
    if not config.requests_per_minute:
        return []

    def identify(request: Request[Any, Any, Any]) -> str:
        return client_id(request)

    limit = RateLimitConfig(
        rate_limit=("minute", config.requests_per_minute),
        exclude_opt_key=PUBLIC,
        identifier_for_request=identify,
    )
    return [limit.middleware]
