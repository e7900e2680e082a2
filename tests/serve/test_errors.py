"""serve/errors.py: OpenAI's shape, and headers that say whether to try again."""

import pytest

from slm_fn.serve.errors import ApiError


@pytest.mark.parametrize(
    ("status", "kind", "header"),
    [
        (400, "invalid_request_error", None),
        (401, "authentication_error", "WWW-Authenticate"),
        (413, "invalid_request_error", "Connection"),
        (429, "rate_limit_error", "Retry-After"),
        (500, "server_error", "x-should-retry"),
        (503, "overloaded_error", "Retry-After"),
        (504, "server_error", "x-should-retry"),
    ],
)
def test_shape_and_headers(status, kind, header):
    error = ApiError(status, "wait", "a_code", "a_param")
    assert error.body() == {"error": {"message": "wait", "type": kind, "param": "a_param", "code": "a_code"}}
    assert list(error.headers()) == ([header] if header else [])
