"""API errors in OpenAI's format, and the exception handlers that send them.

Invariant: no response contains a traceback, a local path or another client's text; the log does.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from litestar import Request, Response
from litestar.exceptions import HTTPException

log = logging.getLogger(__name__)
MISSING_FIELD = re.compile("Object missing required field `([^`]*)`")
ERROR_TYPES = {401: "authentication_error", 429: "rate_limit_error", 503: "overloaded_error"}


class ApiError(Exception):
    """An error response in OpenAI's format.

    Args:
        status: the HTTP status.
        message: what is wrong, for the client.
        code: OpenAI's machine-readable code of the error.
        param: the request parameter that is wrong.
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
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """Returns `{"error": {message, type, param, code}}`."""
        default_type = "server_error" if self.status >= 500 else "invalid_request_error"
        fields = {
            "message": self.message,
            "type": ERROR_TYPES.get(self.status, default_type),
            "param": self.param,
            "code": self.code,
        }
        return {"error": fields}

    def headers(self) -> dict[str, str]:
        """Returns the headers that say how to authenticate, or whether and when to retry."""
        match self.status:
            case 401:
                return {"WWW-Authenticate": "Bearer"}
            case 408 | 413:
                return {"Connection": "close"}  # the rest of the body is still being sent
            case 429 | 503:
                return {"Retry-After": str(self.retry_after)}
            case status if status >= 500:
                return {"x-should-retry": "false"}
        return {}


def invalid_request(
    message: str, param: str | None = None, code: str = "invalid_value"
) -> ApiError:
    """Returns a 400 error that names the wrong parameter."""
    return ApiError(400, message, code, param)


INTERNAL_ERROR = ApiError(
    500, "the server failed on this request; see the server's log", "server_error"
)


def handle_api_error(_: Request[Any, Any, Any], error: ApiError) -> Response[Any]:
    """Returns the response of an `ApiError`."""
    return Response(
        error.body(),
        status_code=error.status,
        headers=error.headers(),
        media_type="application/json",
    )


def handle_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    """Returns the response of Litestar's own errors, in OpenAI's format.

    These are unknown paths and methods, bodies that are too large or are not JSON, and exceeded
    request rates.
    """
    if error.status_code >= 500:
        return handle_unexpected_error(request, error)
    error_headers = error.headers or {}
    if error.status_code == 429:
        api_error = _rate_limit_error(error_headers)
    elif isinstance(error.extra, list) and error.extra:
        api_error = _validation_error(error.status_code, error.extra[0])
    else:
        api_error = ApiError(error.status_code, error.detail or "the request failed")
    response = handle_api_error(request, api_error)
    for name, value in error_headers.items():
        response.headers.setdefault(name, value)
    return response


def _validation_error(status: int, problem: Mapping[str, Any]) -> ApiError:
    """Returns the error of one problem that the validation of a body reports.

    `data` is Litestar's name for the complete body.
    """
    key = str(problem.get("key") or "")
    message = str(problem.get("message"))
    path = [] if key in ("", "data") else [key]
    missing = MISSING_FIELD.fullmatch(message)
    if missing:
        param = ".".join([*path, missing[1]])
        return ApiError(status, f"{param} is missing", "missing_required_parameter", param)
    if path:
        return ApiError(status, f"{key}: {message}", "invalid_value", key)
    return ApiError(status, f"body: {message}", "invalid_value")


def _rate_limit_error(headers: Mapping[str, str]) -> ApiError:
    seconds_to_reset = max(1, int(headers.get("RateLimit-Reset", "1")))
    return ApiError(
        429,
        "request rate limit exceeded",
        "rate_limit_exceeded",
        retry_after=seconds_to_reset,
    )


def handle_recursion_error(request: Request[Any, Any, Any], _: RecursionError) -> Response[Any]:
    """Returns the response to JSON that is nested more deeply than the parser can follow."""
    error = invalid_request("the body is nested too deeply", code="invalid_json")
    return handle_api_error(request, error)


def handle_unicode_error(request: Request[Any, Any, Any], _: UnicodeDecodeError) -> Response[Any]:
    """Returns the response to JSON that is not UTF-8."""
    return handle_api_error(request, invalid_request("the body is not UTF-8", code="invalid_json"))


ExceptionHandler = Callable[[Request[Any, Any, Any], Any], Response[Any]]
BODY_EXCEPTION_HANDLERS: dict[int | type[Exception], ExceptionHandler] = {
    RecursionError: handle_recursion_error,
    UnicodeDecodeError: handle_unicode_error,
}
"""The handlers of errors that parsing a body can raise: for every route that has one."""


def handle_unexpected_error(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Logs any other exception and returns a 500 without its details."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return handle_api_error(request, INTERNAL_ERROR)
