"""serve/protocol/errors.py: OpenAI's format, and headers that say whether to retry."""

import pytest

from slm_fn.serve.protocol.errors import ApiError


@pytest.mark.parametrize(
    ("status", "error_type", "header"),
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
def test_shape_and_headers(status, error_type, header):
    error = ApiError(status, "wait", "a_code", "a_param")
    assert error.body() == {
        "error": {"message": "wait", "type": error_type, "param": "a_param", "code": "a_code"}
    }
    assert list(error.headers()) == ([header] if header else [])
