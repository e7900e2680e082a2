"""serve/config.py: settings out of range are named; an origin is scheme, host and port only."""

import pytest

from slm_fn.serve import config
from slm_fn.serve.config import ServeConfig


@pytest.mark.parametrize(
    "origin", ["https://a.example", "http://127.0.0.1:8000", "http://[::1]:80", "*"]
)
def test_valid_origins_are_accepted(origin):
    assert config.check(ServeConfig(cors=(origin,))).cors == (origin,)


@pytest.mark.parametrize(
    "origin", ["a.example", "https://a.example/", "ftp://a", "null", "https://", "http://a:x"]
)
def test_an_invalid_origin_is_rejected(origin):
    with pytest.raises(ValueError, match="an origin is"):
        config.check(ServeConfig(cors=(origin,)))


@pytest.mark.parametrize(
    "setting",
    [
        {"max_batch": 0},
        {"prefill_chunk": 0},
        {"prefix_cache_tokens": -1},
        {"timeout": 0.0},
        {"requests_per_minute": -1},
    ],
)
def test_a_setting_out_of_range_is_named(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        config.check(ServeConfig(**setting))
