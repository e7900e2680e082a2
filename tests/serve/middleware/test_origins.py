"""serve/middleware/origins.py: host names are parsed without an exception."""

from slm_fn.serve.middleware import origins


def test_an_invalid_host_has_no_name():
    assert origins.parse_hostname("[") is None
