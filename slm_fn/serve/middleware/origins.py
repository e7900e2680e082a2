"""Which hosts and origins may use the server: the guard of every route, and the CORS settings.

Invariant: a page of an origin that is not listed cannot use the server through a visitor's browser.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from litestar.config.cors import CORSConfig
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from slm_fn.serve.config import ServeConfig
from slm_fn.serve.protocol.errors import ApiError

MAX_PATH_CHARACTERS = 1024
MAX_NAME_BYTES = 255  # of a file name, on most file systems

Guard = Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], None]


def make_guard(config: ServeConfig) -> Guard:
    """Returns the guard that applies `check_path` and `check_origin` to every request.

    Litestar's AllowedHosts is not used because its response is not in OpenAI's format, and its CORS
    middleware accepts every request that is not a preflight.
    """

    def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        check_path(connection.scope["path"])
        host = connection.headers.get("host", "")
        check_origin(config, host, connection.headers.get("origin"))

    return guard


def check_path(path: str) -> None:
    """Rejects a path that no file system accepts: Litestar's static files would fail on it.

    Raises:
        ApiError: 404.
    """
    names = [name.encode(errors="replace") for name in path.split("/")]
    has_long_name = any(len(name) > MAX_NAME_BYTES for name in names)
    if "\0" in path or has_long_name or len(path) > MAX_PATH_CHARACTERS:
        raise ApiError(404, "Not Found")


def check_origin(config: ServeConfig, host: str, origin: str | None) -> None:
    """Rejects requests of other origins' pages, and names that an attacker bound to this address.

    Args:
        config: lists the accepted hosts and origins.
        host: the Host header.
        origin: the Origin header; browsers send it.

    Raises:
        ApiError: 403.
    """
    if config.hosts and parse_hostname(host) not in config.hosts:
        raise ApiError(403, f"the host {host!r} is not a name of this server", "unknown_host")
    is_listed = "*" in config.cors or origin in config.cors
    if origin is not None and not is_listed and origin.partition("://")[2] != host:
        raise ApiError(403, f"pages of {origin} may not use this server", "foreign_origin")


def parse_hostname(host: str) -> str | None:
    """Returns the name in a Host header, without its port; None if it is not valid.

    Example:
        >>> parse_hostname("a.example:80"), parse_hostname("[::1]:80"), parse_hostname("[")
        ('a.example', '::1', None)
    """
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def make_cors_config(config: ServeConfig) -> CORSConfig | None:
    """Returns what browsers may let pages of the listed origins do; cookies are never included."""
    if not config.cors:
        return None
    return CORSConfig(
        allow_origins=list(config.cors),
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type"],
        expose_headers=["x-request-id", "Retry-After"],
        max_age=600,
    )
