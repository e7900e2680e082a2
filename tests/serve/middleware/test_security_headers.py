"""serve/middleware/security_headers.py: every response start has them, and only that message."""

import asyncio

import pytest

from slm_fn.serve.config import ServeConfig
from slm_fn.serve.middleware import security_headers


def add_headers(config, path, message_type="http.response.start"):
    message = {"type": message_type, "status": 200, "headers": []}
    hook = security_headers.make_hook(config)
    asyncio.run(hook(message, {"type": "http", "path": path}))
    return {name.decode().lower(): value.decode() for name, value in message["headers"]}


@pytest.mark.parametrize(
    ("cors", "path", "policy"),
    [
        ((), "/widget.js", "same-origin"),
        (("*",), "/widget.js", "cross-origin"),
        (("*",), "/v1/models", "same-origin"),
    ],
)
def test_scripts_may_be_loaded_by_other_origins_if_any_are_listed(cors, path, policy):
    headers = add_headers(ServeConfig(cors=cors), path)
    assert headers["cross-origin-resource-policy"] == policy
    assert headers["x-request-id"].startswith("req_")
    names = {name.lower() for name in security_headers.SECURITY_HEADERS}
    assert names <= headers.keys()


def test_other_messages_stay_as_they_are():
    assert add_headers(ServeConfig(), "/", "http.response.body") == {}
