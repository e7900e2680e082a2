"""Errors that a client is told: OpenAI's shape for whatever goes wrong, wherever.

Invariant: no error shows a traceback, a path of this machine or another client's words; those go to the log.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from litestar import Request, Response
from litestar.exceptions import HTTPException

log = logging.getLogger(__name__)
MISSING = re.compile("Object missing required field `([^`]*)`")
KINDS = {401: "authentication_error", 429: "rate_limit_error", 503: "overloaded_error"}


class ApiError(Exception):
    """An error a client is told, in OpenAI's shape.

    Args:
        retry_after: seconds after which the same request may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        retry_after: int = 1,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    def body(self) -> dict[str, Any]:
        """`{"error": {message, type, param, code}}`."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """What tells a client whether and when to try again, and how to say who it is."""
        match self.status:
            case 401:
                return {"WWW-Authenticate": "Bearer"}
            case 408 | 413:
                return {"Connection": "close"}  # the rest of the body is still on its way
            case 429 | 503:
                return {"Retry-After": str(self.retry_after)}
            case status if status >= 500:
                return {"x-should-retry": "false"}
        return {}


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A 400 that names the parameter."""
    return ApiError(400, message, code, param)


FAILED = ApiError(500, "the server failed on this request; its log says why", "server_error")


def api_error(_: Request[Any, Any, Any], error: ApiError) -> Response[Any]:
    """The response to an error that says itself what it is."""
    return Response(error.body(), status_code=error.status, headers=error.headers(), media_type="application/json")


def http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    """Litestar's own errors: unknown paths and methods, bodies that are too large or no JSON, rates exceeded."""
    if error.status_code >= 500:
        return any_error(request, error)
    message: str = error.detail or "the request failed"
    code: str | None = None
    param: str | None = None
    if isinstance(error.extra, list) and error.extra:
        message, code, param = _found(str(error.extra[0].get("key") or ""), str(error.extra[0].get("message")))
    told = ApiError(error.status_code, message, code, param)
    if error.status_code == 429:
        told = _too_fast(error.headers or {})
    answer = api_error(request, told)
    for name, value in (error.headers or {}).items():
        answer.headers.setdefault(name, value)
    return answer


def _found(key: str, message: str) -> tuple[str, str, str | None]:
    """Message, code and parameter for what validation found at `key`; `data` is Litestar's name for the whole body."""
    path = [key] if key not in ("", "data") else []
    if missing := MISSING.fullmatch(message):
        param = ".".join([*path, missing[1]])
        return f"{param} is missing", "missing_required_parameter", param
    return f"{key if path else 'body'}: {message}", "invalid_value", key if path else None


def _too_fast(headers: Mapping[str, str]) -> ApiError:
    wait = max(1, int(headers.get("RateLimit-Reset", "1")))
    return ApiError(429, "too many requests in this minute", "rate_limit_exceeded", retry_after=wait)


def too_deep(request: Request[Any, Any, Any], _: RecursionError) -> Response[Any]:
    """JSON nested beyond what a reader can follow."""
    return api_error(request, invalid("the body is nested too deeply", code="invalid_json"))


def no_text(request: Request[Any, Any, Any], _: UnicodeDecodeError) -> Response[Any]:
    """JSON whose strings are no UTF-8."""
    return api_error(request, invalid("the body is not UTF-8", code="invalid_json"))


BODY: dict[int | type[Exception], Callable[[Request[Any, Any, Any], Any], Response[Any]]] = {
    RecursionError: too_deep,
    UnicodeDecodeError: no_text,
}
"""What a body may do to those who read it: for every handler that has one."""


def any_error(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """What nobody foresaw: the log has it, the client is told no more than that."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return api_error(request, FAILED)
