"""Errors of the hub: which are retried, what the advice is, and that no token is in a message."""

from types import SimpleNamespace

import pytest

from slm_fn.data.io import hub_errors


class ResponseError(Exception):
    """An error with an HTTP response, as the libraries' own."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the server returned {status}")
        self.response = SimpleNamespace(status_code=status)


class GatedRepoError(ResponseError):
    """Raised by the hub's library for a data set whose terms were not accepted."""


def wrapped(cause: Exception) -> Exception:
    try:
        try:
            raise cause
        except Exception as error:
            raise RuntimeError("could not load") from error
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ResponseError(500), True),
        (ResponseError(429), True),
        (ResponseError(404), False),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (KeyError("text"), False),
        (ConnectionError("OfflineModeIsEnabled"), False),
    ],
)
def test_network_failures_are_transient_also_behind_other_errors(error, expected):
    assert hub_errors.is_transient(error) == expected
    if "OfflineModeIsEnabled" not in str(error):
        assert hub_errors.is_transient(wrapped(error)) == expected


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (ConnectionError("OfflineModeIsEnabled"), "offline mode is on; unset HF_HUB_OFFLINE"),
        (GatedRepoError(403), "accept its terms at huggingface.co/datasets/org/set"),
        (ResponseError(401), "check the name; if it is private or gated, set HF_TOKEN"),
        (ResponseError(503), "gave up after 3 attempts; check the network"),
        (KeyError("text"), "check config, split and revision at its page on the hub"),
    ],
)
def test_the_message_is_one_line_with_advice(error, advice):
    line = hub_errors.explain("org/set", error, 3)
    assert line.startswith("org/set: ")
    assert advice in line
    assert "\n" not in line


def test_a_message_has_no_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "my-own-token")
    error = ConnectionError("\n hf_averysecrettoken, my-own-token and Bearer abc failed.\nmore")
    assert hub_errors.describe(wrapped(error)) == "***, *** and *** failed"
