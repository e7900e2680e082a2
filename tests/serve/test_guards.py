"""serve/app.py and worker.py at their borders: foreign pages, failing models, clients that leave while they wait."""

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
from parrot import TEXT, Parrot

from slm_fn.serve.app import create_app
from slm_fn.serve.config import ServeConfig

BODY = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def ask(server):
    return lambda changes=None, **headers: httpx.post(
        f"{server.url}/v1/chat/completions", json={**BODY, **(changes or {})}, headers=headers, timeout=30
    )


def test_pages_of_other_origins_are_refused(ask, server):
    assert ask(origin=server.url).status_code == 200
    for origin in ("https://evil.example", "null", server.url + "0"):
        refused = ask(origin=origin)
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "foreign_origin"


def test_a_name_rebound_to_this_address_is_refused(parrot):
    with TestClient(create_app(parrot, ServeConfig(name="parrot", hosts=("127.0.0.1", "::1")))) as client:
        for host, status in (("127.0.0.1:80", 200), ("[::1]:80", 200), ("evil.example", 403), ("[", 403)):
            for path in ("/health", "/", "/chat.js"):
                assert client.get(path, headers={"host": host}).status_code == status


def test_every_response_carries_the_security_headers(ask, server):
    answers = [
        ask(),
        ask({"n": 99}),
        httpx.get(server.url),
        httpx.get(f"{server.url}/no"),
        httpx.put(f"{server.url}/v1/models"),
    ]
    assert [a.status_code for a in answers] == [200, 400, 200, 404, 405]
    for answer in answers:
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert len({answer.headers["x-request-id"] for answer in answers}) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 1, "logprobs": False, "response_format": {"type": "text"}, "presence_penalty": 0, "tools": []},
        {"tools": [{"type": "function"}], "tool_choice": "none"},
        {"user": "me", "metadata": {"a": 1}, "store": True, "a_field_of_next_month": [1]},
        {"top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1, "temperature": 0, "seed": -5},
        {"temperature": 1e-300},
        {"stop": None, "stream": None, "max_tokens": None},
    ],
)
def test_what_changes_nothing_is_let_pass(ask, changes):
    answer = ask(changes)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == TEXT


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
def test_a_refused_parameter_is_named(ask, changes, param):
    answer = ask(changes)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_model_that_fails_is_told_and_the_server_lives_on(server, ask, caplog):
    right, Parrot.said = Parrot.said, (Parrot.said[0], 10**6)
    try:
        plain = ask()
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            stream = client.chat.completions.create(model="parrot", stream=True, **BODY)
            with pytest.raises(openai.APIError, match="the server failed"):
                list(stream)
    finally:
        Parrot.said = right
    assert plain.status_code == 500
    assert plain.json()["error"]["type"] == "server_error"
    assert plain.headers["x-should-retry"] == "false"
    assert "out of bounds" in caplog.text
    assert "out of bounds" not in plain.text
    assert server.health()["active"] == 0
    assert ask().json()["choices"][0]["message"]["content"] == TEXT


def test_who_left_before_the_stream_began_takes_no_place(parrot):
    """It leaves while its prompt is made to tokens: nobody will read the stream, which must end all the same."""
    Parrot.delay = 0.1
    app = create_app(parrot, ServeConfig(name="parrot"))
    body = json.dumps({**BODY, "stream": True}).encode()
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
             "path": "/v1/chat/completions", "raw_path": b"", "root_path": "", "query_string": b"",
             "headers": [(b"host", b"a")], "client": ("1.2.3.4", 5), "server": ("a", 80)}  # fmt: skip

    async def use():
        said = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            return said.pop() if said else {"type": "http.disconnect"}

        async def send(message):
            pass

        async with app.lifespan():
            while app.state.worker.phase == "loading":
                await asyncio.sleep(0.01)
            await app(scope, receive, send)
            return [job.cancelled.is_set() for job in (*app.state.worker.line, *app.state.worker.running.values())]

    assert all(asyncio.run(use()))


def test_every_page_may_come_where_the_star_is_given(parrot):
    with TestClient(create_app(parrot, ServeConfig(name="parrot", cors=("*",)))) as client:
        for origin in ("https://any.example", "null"):
            wanted = {"origin": origin, "access-control-request-method": "POST"}
            preflight = client.options("/v1/chat/completions", headers=wanted)
            assert preflight.status_code == 204
            assert preflight.headers["access-control-allow-origin"] == "*"
            answer = client.get("/v1/models", headers={"origin": origin})
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == "*"
            assert "access-control-allow-credentials" not in answer.headers


def test_the_log_has_prompts_and_replies_where_asked_for(parrot, serve, caplog):
    caplog.set_level(logging.INFO, "slm.access")
    with serve(parrot, ServeConfig(name="parrot", log_text=True)) as server:
        for changes in ({}, {"stream": True}):
            httpx.post(f"{server.url}/v1/chat/completions", json={**BODY, **changes}, timeout=30)
        httpx.post(f"{server.url}/v1/completions", json={"prompt": "a", "max_tokens": 200}, timeout=30)
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "slm.access"]
    assert [line["reply"] for line in lines] == [[TEXT]] * 3
    assert [line["prompt"] for line in lines][1:] == [lines[0]["prompt"], ["a"]]
    assert "hello" in str(lines[0]["prompt"])


def test_who_leaves_while_waiting_takes_no_place(server):
    server.model.delay = 0.1
    links = [http.client.HTTPConnection("127.0.0.1", server.port) for _ in range(4)]
    for link in links:
        link.request("POST", "/v1/chat/completions", json.dumps(BODY))
    wait(server, 4)
    links[3].close()
    wait(server, 3)
    with closing(http.client.HTTPConnection("127.0.0.1", server.port)) as another:
        another.request("POST", "/v1/chat/completions", json.dumps(BODY))
        wait(server, 4)
    for link in links:
        link.close()
    assert server.idle_within(3)


def wait(server, active):
    end = time.monotonic() + 3
    while server.health()["active"] != active:
        assert time.monotonic() < end
        time.sleep(0.01)
