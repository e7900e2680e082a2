"""serve/app.py and worker.py at their borders: foreign pages, failing models, clients that leave while they wait."""

import http.client
import json
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
        ({"repetition_penalty": 1e-30}, "repetition_penalty"),
        ({"temperature": "hot"}, "temperature"),
        ({"stop": [""]}, "stop"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
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
