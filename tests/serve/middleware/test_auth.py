"""serve/middleware/auth.py: a client is its key or its address; limits exist if configured."""

import pytest
from litestar.connection import ASGIConnection

from slm_fn.serve.config import ServeConfig
from slm_fn.serve.middleware import auth


@pytest.mark.parametrize(
    ("scope", "client_id"),
    [
        ({"user": "ada", "client": ("1.2.3.4", 5)}, "key ada"),
        ({"client": ("1.2.3.4", 5)}, "address 1.2.3.4"),
        ({"headers": [(b"x-forwarded-for", b"9.9.9.9")]}, "address "),
    ],
)
def test_a_client_is_its_key_or_its_address(scope, client_id):
    connection = ASGIConnection({"type": "http", "headers": [], "client": None, **scope})
    assert auth.client_id(connection) == client_id


def test_middleware_exists_only_if_configured():
    assert auth.make_auth_middleware(ServeConfig()) == []
    assert auth.make_rate_limit(ServeConfig()) == []
    assert len(auth.make_rate_limit(ServeConfig(requests_per_minute=1))) == 1
