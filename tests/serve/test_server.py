"""serve/server.py: after a signal, accepted replies end, no more are accepted, the server exits."""

import json
import signal
import threading
import time

import httpx
import pytest
from scripted_model import TEXT, ScriptedModel

from slm_fn.serve.config import ServeConfig
from slm_fn.serve.server import listen

BODY = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def drain(serve, scripted_model):
    """`drain(seconds, act)`: signal a server in the middle of a stream, and then `act(running)`.

    Returns the stream's events, its last line in a list, and the server.
    """

    def run(drain_timeout, act):
        ScriptedModel.seconds_per_step = 0.02
        lines = []
        config = ServeConfig(name="scripted", drain_timeout=drain_timeout)
        with serve(scripted_model, config) as running:
            client = threading.Thread(target=read_stream, args=(running, lines))
            client.start()
            while not any("I" in line for line in lines):
                time.sleep(0.005)
            running.server.handle_exit(signal.SIGTERM, None)
            act(running)
            client.join(120)
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        return events, lines[-1:], running

    return run


def read_stream(running, lines):
    url = f"{running.url}/v1/chat/completions"
    try:
        with httpx.stream("POST", url, json={**BODY, "stream": True}) as response:
            lines.extend(line for line in response.iter_lines() if line)
    except httpx.RemoteProtocolError:
        lines.append("disconnected")


def ended_within(running, seconds):
    deadline = time.monotonic() + seconds
    while running.server.started and running.services.worker.thread.is_alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_accepted_streams_end_and_the_open_port_reports_draining(drain):
    def act(running):
        ready = httpx.get(f"{running.url}/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "draining")
        assert ready.headers["retry-after"]
        rejected = httpx.post(f"{running.url}/v1/chat/completions", json=BODY)
        assert rejected.status_code == 503
        assert rejected.json()["error"]["type"] == "overloaded_error"

    events, last_line, running = drain(30.0, act)
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events) == TEXT
    assert last_line == ["data: [DONE]"]
    assert ended_within(running, 60)


def test_replies_that_exceed_the_drain_timeout_end_with_an_error(drain):
    events, last_line, running = drain(0.2, lambda running: None)
    assert events[-1]["error"]["code"] == "shutting_down"
    assert last_line != ["data: [DONE]"]
    assert ended_within(running, 60)


def test_a_connection_is_kept_longer_than_clients_and_proxies_keep_it(server):
    """With equal times a client may send a request just when the server closes the connection."""
    server_seconds = server.server.config.timeout_keep_alive
    assert server_seconds > max(60, httpx.Limits().keepalive_expiry)


def test_a_second_signal_stops_at_once(drain):
    def act(running):
        running.server.handle_exit(signal.SIGTERM, None)

    events, last_line, running = drain(30.0, act)
    assert last_line != ["data: [DONE]"]
    assert all("error" not in event for event in events)
    # uvicorn leaves the application as it is, since the process ends here.
    running.services.worker.close()


def test_a_port_in_use_is_an_error_that_names_the_address():
    with (
        listen("127.0.0.1", 0) as listener,
        pytest.raises(ValueError, match="cannot listen on"),
    ):
        listen("127.0.0.1", listener.getsockname()[1])
