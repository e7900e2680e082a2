"""serve/middleware/body_timeout.py: a body has a deadline, and what follows it has none."""

import asyncio

import pytest

from slm_fn.serve.config import ServeConfig
from slm_fn.serve.middleware import body_timeout
from slm_fn.serve.protocol.errors import ApiError

FIRST_PART = {"type": "http.request", "body": b"{", "more_body": True}
LAST_PART = {"type": "http.request", "body": b"}", "more_body": False}
DISCONNECT = {"type": "http.disconnect"}


def receive_all(arrivals, body_timeout_seconds):
    """The messages that an application receives; `arrivals` are (delay in seconds, message)."""
    received = []

    async def app(scope, receive, send):
        for _ in arrivals:
            received.append(await receive())

    async def run():
        waiting = iter(arrivals)

        async def receive():
            delay, message = next(waiting)
            await asyncio.sleep(delay)
            return message

        config = ServeConfig(body_timeout=body_timeout_seconds)
        wrapped = body_timeout.make_middleware(config)(app)
        await wrapped({"type": "http"}, receive, None)

    asyncio.run(run())
    return received


def test_a_complete_body_is_passed_on_and_the_disconnect_has_no_deadline():
    arrivals = [(0, FIRST_PART), (0, LAST_PART), (0.3, DISCONNECT)]
    assert receive_all(arrivals, 0.2) == [FIRST_PART, LAST_PART, DISCONNECT]


@pytest.mark.parametrize(
    ("arrivals", "status"),
    [([(0, FIRST_PART), (60, LAST_PART)], 408), ([(0, FIRST_PART), (0, DISCONNECT)], 499)],
)
def test_an_incomplete_body_is_an_error(arrivals, status):
    with pytest.raises(ApiError) as error:
        receive_all(arrivals, 0.2)
    assert error.value.status == status
