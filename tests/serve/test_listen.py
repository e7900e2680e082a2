"""serve/listen.py: told to stop, a server ends what it accepted, takes no more, says so, and does not wait for ever."""

import json
import signal
import threading
import time

import httpx
import pytest
from parrot import TEXT, Parrot

from slm_fn.serve.config import ServeConfig

BODY = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def draining(serve, parrot):
    """`draining(seconds, signals)`: what a client of a stream hears when the server is told to stop in its middle."""

    def run(seconds, during):
        Parrot.delay = 0.02
        heard = []
        with serve(parrot, ServeConfig(name="parrot", drain_timeout=seconds)) as server:
            client = threading.Thread(target=listen, args=(server, heard))
            client.start()
            while not any("I" in line for line in heard):
                time.sleep(0.005)
            server.running.handle_exit(signal.SIGTERM, None)
            during(server)
            client.join(10)
            return [json.loads(line[6:]) for line in heard if line.startswith("data: {")], heard[-1:], server

    return run


def listen(server, heard):
    try:
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json={**BODY, "stream": True}) as answer:
            heard.extend(line for line in answer.iter_lines() if line)
    except httpx.RemoteProtocolError:
        heard.append("cut")


def ended_within(server, seconds):
    end = time.monotonic() + seconds
    while server.running.started and server.app.state.worker.thread.is_alive():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def test_accepted_streams_end_and_the_open_port_says_that_no_more_is_taken(draining):
    def during(server):
        ready = httpx.get(f"{server.url}/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "draining")
        assert ready.headers["retry-after"]
        refused = httpx.post(f"{server.url}/v1/chat/completions", json=BODY)
        assert refused.status_code == 503
        assert refused.json()["error"]["type"] == "overloaded_error"

    events, last, server = draining(30.0, during)
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events) == TEXT
    assert last == ["data: [DONE]"]
    assert ended_within(server, 3)


def test_what_is_left_when_the_time_is_up_is_told_so(draining):
    events, last, server = draining(0.2, lambda server: None)
    assert events[-1]["error"]["code"] == "shutting_down"
    assert last != ["data: [DONE]"]
    assert ended_within(server, 3)


def test_a_connection_is_kept_longer_than_clients_and_proxies_keep_it(server):
    """Both ends had five seconds: one request of thousands met a connection that was being closed."""
    assert server.running.config.timeout_keep_alive > max(60, httpx.Limits().keepalive_expiry)


def test_a_second_signal_waits_for_nobody(draining):
    def during(server):
        server.running.handle_exit(signal.SIGTERM, None)

    events, last, server = draining(30.0, during)
    assert last != ["data: [DONE]"]
    assert all("error" not in event for event in events)
    server.app.state.worker.close()  # uvicorn leaves the application as it is; the process would end here
