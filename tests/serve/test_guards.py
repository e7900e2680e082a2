"""serve/app.py, worker.py: foreign pages, failing models, clients that disconnect while waiting."""

import asyncio
import http.client
import json
import logging
import time
from contextlib import closing

import httpx
import openai
import pytest
from litestar.testing import TestClient
from scripted_model import TEXT, ScriptedModel

from slm_fn.serve.app import create_app
from slm_fn.serve.config import ServeConfig
from slm_fn.serve.services import services_of

BODY = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def post(server):
    return lambda changes=None, **headers: httpx.post(
        f"{server.url}/v1/chat/completions",
        json={**BODY, **(changes or {})},
        headers=headers,
        timeout=30,
    )


def test_pages_of_other_origins_are_rejected(post, server):
    assert post(origin=server.url).status_code == 200
    for origin in ("https://evil.example", "null", server.url + "0"):
        rejected = post(origin=origin)
        assert rejected.status_code == 403
        assert rejected.json()["error"]["code"] == "foreign_origin"


def test_a_host_name_bound_to_this_address_is_rejected(scripted_model):
    with TestClient(
        create_app(scripted_model, ServeConfig(name="scripted", hosts=("127.0.0.1", "::1")))
    ) as client:
        for host, status in (
            ("127.0.0.1:80", 200),
            ("[::1]:80", 200),
            ("evil.example", 403),
            ("[", 403),
        ):
            for path in ("/health", "/", "/chat.js"):
                assert client.get(path, headers={"host": host}).status_code == status


def test_every_response_carries_the_security_headers(post, server):
    responses = [
        post(),
        post({"n": 99}),
        httpx.get(server.url),
        httpx.get(f"{server.url}/no"),
        httpx.put(f"{server.url}/v1/models"),
    ]
    assert [response.status_code for response in responses] == [200, 400, 200, 404, 405]
    for response in responses:
        assert response.headers["content-security-policy"].startswith("default-src 'none'")
        assert "unsafe" not in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
    assert len({response.headers["x-request-id"] for response in responses}) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {
            "n": 1,
            "logprobs": False,
            "response_format": {"type": "text"},
            "presence_penalty": 0,
            "tools": [],
        },
        {"tools": [{"type": "function"}], "tool_choice": "none"},
        {"user": "me", "metadata": {"a": 1}, "store": True, "a_field_of_next_month": [1]},
        {"top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1, "temperature": 0, "seed": -5},
        {"temperature": 1e-300},
        {"stop": None, "stream": None, "max_tokens": None},
    ],
)
def test_fields_without_effect_are_accepted(post, changes):
    response = post(changes)
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == TEXT


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"min_tokens": 3}, "min_tokens"),
        ({"frequency_penalty": 1e9}, "frequency_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 2**63}, "top_k"),
        ({"bad_words": ["a"] * 1025}, "bad_words"),
        ({"logit_bias": {str(i): 0 for i in range(1025)}}, "logit_bias"),
        ({"repetition_penalty": 1e-30}, "repetition_penalty"),
        ({"temperature": "hot"}, "temperature"),
        ({"stop": [""]}, "stop"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"stop": {}}, "stop"),
    ],
)
def test_a_rejected_parameter_is_named(post, changes, param):
    response = post(changes)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_a_failing_model_is_an_error_and_the_server_continues(server, post, caplog):
    reply_ids = ScriptedModel.reply_ids
    ScriptedModel.reply_ids = (reply_ids[0], 10**6)
    try:
        response = post()
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            stream = client.chat.completions.create(model="scripted", stream=True, **BODY)
            with pytest.raises(openai.APIError, match="the server failed"):
                list(stream)
    finally:
        ScriptedModel.reply_ids = reply_ids
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert response.headers["x-should-retry"] == "false"
    assert "out of bounds" in caplog.text
    assert "out of bounds" not in response.text
    assert server.health()["active"] == 0
    assert post().json()["choices"][0]["message"]["content"] == TEXT


def test_a_client_that_left_before_the_stream_began_holds_no_slot(scripted_model):
    """It leaves while its prompt is tokenized, so the stream is never read and must end anyway."""
    ScriptedModel.seconds_per_step = 0.1
    app = create_app(scripted_model, ServeConfig(name="scripted"))
    worker = services_of(app).worker
    body = json.dumps({**BODY, "stream": True}).encode()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/chat/completions",
        "raw_path": b"",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"a")],
        "client": ("1.2.3.4", 5),
        "server": ("a", 80),
    }

    async def run():
        body_messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            return body_messages.pop() if body_messages else {"type": "http.disconnect"}

        async def send(message):
            pass

        async with app.lifespan():
            while worker.phase == "loading":
                await asyncio.sleep(0.01)
            await app(scope, receive, send)
            jobs = [*worker.queue, *worker.running.values()]
            return [scheduled.is_cancelled for scheduled in jobs]

    assert all(asyncio.run(run()))


def test_pages_of_every_origin_are_accepted_with_a_star(scripted_model):
    with TestClient(
        create_app(scripted_model, ServeConfig(name="scripted", cors=("*",)))
    ) as client:
        for origin in ("https://any.example", "null"):
            preflight_headers = {"origin": origin, "access-control-request-method": "POST"}
            preflight = client.options("/v1/chat/completions", headers=preflight_headers)
            assert preflight.status_code == 204
            assert preflight.headers["access-control-allow-origin"] == "*"
            response = client.get("/v1/models", headers={"origin": origin})
            assert response.status_code == 200
            assert response.headers["access-control-allow-origin"] == "*"
            assert "access-control-allow-credentials" not in response.headers


def test_the_log_has_prompts_and_replies_if_configured(scripted_model, serve, caplog):
    caplog.set_level(logging.INFO, "slm.access")
    with serve(scripted_model, ServeConfig(name="scripted", log_text=True)) as server:
        for changes in ({}, {"stream": True}):
            httpx.post(f"{server.url}/v1/chat/completions", json={**BODY, **changes}, timeout=30)
        httpx.post(
            f"{server.url}/v1/completions", json={"prompt": "a", "max_tokens": 200}, timeout=30
        )
    lines = [
        json.loads(record.getMessage()) for record in caplog.records if record.name == "slm.access"
    ]
    assert [line["reply"] for line in lines] == [[TEXT]] * 3
    assert [line["prompt"] for line in lines][1:] == [lines[0]["prompt"], ["a"]]
    assert "hello" in str(lines[0]["prompt"])


def test_a_client_that_leaves_the_queue_holds_no_slot(server):
    server.model.seconds_per_step = 0.3
    connections = [http.client.HTTPConnection("127.0.0.1", server.port) for _ in range(4)]
    for connection in connections:
        connection.request("POST", "/v1/chat/completions", json.dumps(BODY))
    wait_for_active(server, 4)
    connections[3].close()
    wait_for_active(server, 3)
    with closing(http.client.HTTPConnection("127.0.0.1", server.port)) as another:
        another.request("POST", "/v1/chat/completions", json.dumps(BODY))
        wait_for_active(server, 4)
    for connection in connections:
        connection.close()
    assert server.idle_within(60)


def wait_for_active(server, active):
    deadline = time.monotonic() + 60
    while server.health()["active"] != active:
        assert time.monotonic() < deadline
        time.sleep(0.01)
