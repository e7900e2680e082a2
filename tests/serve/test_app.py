"""serve/app.py: OpenAI's own client streams and reads errors; who leaves frees a place; health never waits."""

import http.client
import json
import socket
import time

import httpx
import openai
import pytest
from parrot import TEXT

ASK = [{"role": "user", "content": "hello"}]


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30) as made:
        yield made


def test_the_stream_is_the_plain_answer(client):
    plain = client.chat.completions.create(model="parrot", messages=ASK, temperature=0)
    assert plain.choices[0].message.content == TEXT
    assert plain.choices[0].finish_reason == "stop"
    assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens
    chunks = list(
        client.chat.completions.create(
            model="parrot", messages=ASK, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == plain.usage
    assert len({c.id for c in chunks}) == 1


def test_text_arrives_while_it_is_written(server, client):
    server.model.delay = 0.02
    times = [
        time.monotonic()
        for c in client.chat.completions.create(model="parrot", messages=ASK, stream=True, max_tokens=20)
        if c.choices[0].delta.content
    ]
    assert len(times) > 10
    assert times[-1] - times[0] > 0.2


def test_framing_is_to_the_letter(server):
    with httpx.stream(
        "POST", f"{server.url}/v1/chat/completions", json={"messages": ASK, "stream": True, "max_tokens": 3}
    ) as answer:
        raw = b"".join(answer.iter_raw())
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.status_code == 200
    events = raw.split(b"\n\n")
    assert events[-1] == b""
    assert events[-2] == b"data: [DONE]"
    assert all(event.startswith(b"data: ") and b"\n" not in event and b"\r" not in event for event in events[:-1])
    assert json.loads(events[-3][6:])["choices"][0]["finish_reason"] == "length"


def test_stop_strings_and_limits(client):
    cut = client.chat.completions.create(model="parrot", messages=ASK, temperature=0, stop=["onerror", "zzz"])
    assert cut.choices[0].message.content == TEXT[: TEXT.index("onerror")]
    assert cut.choices[0].finish_reason == "stop"
    short = client.chat.completions.create(
        model="parrot", messages=ASK, temperature=0, max_tokens=9, max_completion_tokens=2
    )
    assert short.choices[0].finish_reason == "length"
    assert short.usage.completion_tokens == 2


def test_content_parts_and_developer_role(client):
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    one, two = (
        client.chat.completions.create(
            model="parrot", messages=[{"role": role, "content": "be brief"}, {"role": "user", "content": content}]
        )
        for role, content in (("developer", parts), ("system", "hello"))
    )
    assert one.usage.prompt_tokens == two.usage.prompt_tokens


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"n": 17}, "invalid_value"),
        ({"n": 5}, "invalid_value"),
        ({"top_logprobs": 2}, "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "invalid_value"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}},
            "unsupported_grammar",
        ),
        ({"logit_bias": {"300": 1}}, "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "unsupported_parameter"),
        ({"temperature": -1}, "invalid_value"),
        ({"max_tokens": 0}, "invalid_value"),
        ({"stop": ["a"] * 5}, "invalid_value"),
        ({"messages": []}, "invalid_value"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "invalid_value"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "invalid_value"),
        ({"messages": [{"role": "user", "content": "long " * 400}]}, "context_length_exceeded"),
    ],
)
def test_what_cannot_be_done_is_a_400_that_says_what(client, changes, code):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**{"model": "parrot", "messages": ASK, **changes})
    assert error.value.code == code
    assert error.value.type == "invalid_request_error"
    if code == "context_length_exceeded":
        assert "maximum context length is 256 tokens" in error.value.message


def test_unknown_models_and_paths_are_404_in_openais_shape(server, client):
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="gpt-9", messages=ASK)
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")
    assert httpx.get(f"{server.url}/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    wrong = httpx.get(f"{server.url}/v1/chat/completions")
    assert wrong.status_code == 405
    assert "error" in wrong.json()


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"[]", 400), (b'{"messages": 3}', 400), (b'{"messages":"' + b"x" * (1 << 21) + b'"}', 413)],
)
def test_bodies_that_are_no_request(server, body, status):
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_what_is_missing_is_named(server):
    for path, name in (("/v1/chat/completions", "messages"), ("/v1/completions", "prompt"), ("/detokenize", "tokens")):
        error = httpx.post(f"{server.url}{path}", json={}).json()["error"]
        assert (error["param"], error["code"]) == (name, "missing_required_parameter")
        assert error["message"] == f"{name} is missing"


def test_who_only_looks_whether_it_is_there(server):
    for path, status in (("/", 200), ("/health", 200), ("/chat.js", 200), ("/nothing", 404), ("/v1/models", 405)):
        answer = httpx.head(server.url + path)
        assert (answer.status_code, answer.content) == (status, b"")


def test_models_are_listed(client):
    listed = client.models.list().data
    assert [m.id for m in listed] == ["parrot"]
    assert client.models.retrieve("parrot").owned_by == "slm_fn"


def open_stream(server):
    """A raw socket in the middle of a stream."""
    link = socket.create_connection(("127.0.0.1", server.port))
    body = json.dumps({"messages": ASK, "stream": True}).encode()
    link.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
        + str(len(body)).encode() + b"\r\n\r\n" + body
    )  # fmt: skip
    seen = b""
    while b'"content":"I' not in seen:
        seen += link.recv(4096)
    return link


def test_a_client_that_leaves_frees_its_place_within_a_token(server, client):
    server.model.delay = 0.1
    link = open_stream(server)
    assert server.health()["active"] == 1
    link.close()
    steps = server.model.steps
    assert server.idle_within(3)
    assert server.model.steps - steps <= 2, "one token may be under way, and one more until the loop has noticed"
    server.model.delay = 0.0
    assert client.chat.completions.create(model="parrot", messages=ASK).choices[0].message.content == TEXT


def test_a_client_that_leaves_a_plain_request_frees_it_too(server):
    server.model.delay = 0.1
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json={"messages": ASK}, timeout=0.4)
    assert server.idle_within(3)


def test_health_answers_while_the_model_computes(server):
    server.model.delay = 0.5
    link = open_stream(server)
    start = time.monotonic()
    assert server.health()["status"] == "ok"
    assert time.monotonic() - start < 0.3
    link.close()
    assert server.idle_within(5)


def test_too_many_are_told_to_wait(server):
    server.model.delay = 0.05
    links = [open_stream(server) for _ in range(2)]
    waiting = [http.client.HTTPConnection("127.0.0.1", server.port) for _ in range(2)]
    for link in waiting:
        link.request("POST", "/v1/chat/completions", json.dumps({"messages": ASK}))
    while server.health()["active"] < 4:
        time.sleep(0.01)
    refused = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": ASK})
    assert refused.status_code == 429
    assert refused.headers["retry-after"]
    assert refused.json()["error"]["type"] == "rate_limit_error"
    for link in (*links, *waiting):
        link.close()
    assert server.idle_within(5)


def test_generations_take_turns(server):
    server.model.delay = 0.02
    links = [open_stream(server) for _ in range(2)]
    assert server.health()["active"] == 2, "the second began to speak before the first had ended"
    for link in links:
        link.close()
    assert server.idle_within(3)


def test_the_page_allows_no_foreign_and_no_inline_script(server):
    page = httpx.get(server.url)
    assert page.status_code == 200
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "<script>" not in page.text
    assert "style=" not in page.text
    assert httpx.get(f"{server.url}/../pyproject.toml").status_code == 404
    assert httpx.get(f"{server.url}/%2e%2e/app.py").status_code == 404
