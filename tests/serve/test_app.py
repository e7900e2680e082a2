"""serve/app.py: OpenAI's client streams and reads errors; a disconnect frees a slot at once."""

import http.client
import json
import socket
import threading
import time

import httpx
import openai
import pytest
from scripted_model import TEXT

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture
def client(server):
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30
    ) as openai_client:
        yield openai_client


def test_the_stream_equals_the_complete_response(client):
    plain = client.chat.completions.create(model="scripted", messages=MESSAGES, temperature=0)
    assert plain.choices[0].message.content == TEXT
    assert plain.choices[0].finish_reason == "stop"
    assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens
    chunks = list(
        client.chat.completions.create(
            model="scripted",
            messages=MESSAGES,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == plain.usage
    assert len({c.id for c in chunks}) == 1


def test_text_arrives_while_it_is_generated(server, client):
    server.model.permits = threading.Semaphore(4)
    chunks = client.chat.completions.create(
        model="scripted", messages=MESSAGES, stream=True, max_tokens=20
    )
    contents = (chunk.choices[0].delta.content for chunk in chunks)
    deltas = [next(content for content in contents if content)]
    assert server.model.num_steps <= 4, "the model waits: most of the reply is not generated yet"
    server.model.permits.release(100)
    deltas += [content for content in contents if content]
    assert len(deltas) > 10


def test_the_framing_of_events_is_exact(server):
    with httpx.stream(
        "POST",
        f"{server.url}/v1/chat/completions",
        json={"messages": MESSAGES, "stream": True, "max_tokens": 3},
    ) as response:
        raw = b"".join(response.iter_raw())
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.status_code == 200
    events = raw.split(b"\n\n")
    assert events[-1] == b""
    assert events[-2] == b"data: [DONE]"
    assert all(
        event.startswith(b"data: ") and b"\n" not in event and b"\r" not in event
        for event in events[:-1]
    )
    assert json.loads(events[-3][6:])["choices"][0]["finish_reason"] == "length"


def test_stop_strings_and_limits(client):
    cut = client.chat.completions.create(
        model="scripted", messages=MESSAGES, temperature=0, stop=["onerror", "zzz"]
    )
    assert cut.choices[0].message.content == TEXT[: TEXT.index("onerror")]
    assert cut.choices[0].finish_reason == "stop"
    short = client.chat.completions.create(
        model="scripted", messages=MESSAGES, temperature=0, max_tokens=9, max_completion_tokens=2
    )
    assert short.choices[0].finish_reason == "length"
    assert short.usage.completion_tokens == 2


def test_content_parts_and_the_developer_role(client):
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    one, two = (
        client.chat.completions.create(
            model="scripted",
            messages=[{"role": role, "content": "be brief"}, {"role": "user", "content": content}],
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
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"not": {}}},
                }
            },
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
def test_an_invalid_request_is_a_400_with_its_code(client, changes, code):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**{"model": "scripted", "messages": MESSAGES, **changes})
    assert error.value.code == code
    assert error.value.type == "invalid_request_error"
    if code == "context_length_exceeded":
        assert "maximum context length is 256 tokens" in error.value.message


def test_unknown_models_and_paths_are_404_in_openais_shape(server, client):
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")
    assert httpx.get(f"{server.url}/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    not_allowed = httpx.get(f"{server.url}/v1/chat/completions")
    assert not_allowed.status_code == 405
    assert "error" in not_allowed.json()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"messages": 3}', 400),
        (b'{"messages":"' + b"x" * (1 << 21) + b'"}', 413),
    ],
)
def test_invalid_bodies_are_rejected(server, body, status):
    response = httpx.post(
        f"{server.url}/v1/chat/completions",
        content=body,
        headers={"content-type": "application/json"},
    )
    assert response.status_code == status
    assert response.json()["error"]["message"]


def test_a_missing_field_is_named(server):
    for path, name in (
        ("/v1/chat/completions", "messages"),
        ("/v1/completions", "prompt"),
        ("/detokenize", "tokens"),
    ):
        error = httpx.post(f"{server.url}{path}", json={}).json()["error"]
        assert (error["param"], error["code"]) == (name, "missing_required_parameter")
        assert error["message"] == f"{name} is missing"


def test_head_requests_of_monitors(server):
    for path, status in (
        ("/", 200),
        ("/health", 200),
        ("/chat.js", 200),
        ("/nothing", 404),
        ("/v1/models", 405),
    ):
        response = httpx.head(server.url + path)
        assert (response.status_code, response.content) == (status, b"")


def test_models_are_listed(client):
    listed = client.models.list().data
    assert [m.id for m in listed] == ["scripted"]
    assert client.models.retrieve("scripted").owned_by == "slm_fn"


def open_stream(server):
    """A raw socket in the middle of a stream."""
    connection = socket.create_connection(("127.0.0.1", server.port))
    body = json.dumps({"messages": MESSAGES, "stream": True})
    head = [
        "POST /v1/chat/completions HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    connection.sendall("\r\n".join([*head, "", body]).encode())
    received = b""
    while b'"content":"I' not in received:
        received += connection.recv(4096)
    return connection


def test_a_client_that_disconnects_frees_its_slot_within_a_token(server, client):
    server.model.seconds_per_step = 0.1
    connection = open_stream(server)
    assert server.health()["active"] == 1
    (scheduled,) = server.services.worker.running.values()
    connection.close()
    assert scheduled.progress.cancelled.wait(60)
    steps = server.model.num_steps
    assert server.idle_within(60)
    assert server.model.num_steps - steps <= 2, (
        "one step may be in progress, and one more until the event loop sees it"
    )
    server.model.seconds_per_step = 0.0
    assert (
        client.chat.completions.create(model="scripted", messages=MESSAGES)
        .choices[0]
        .message.content
        == TEXT
    )


def test_a_client_that_disconnects_from_a_complete_response_frees_it_too(server):
    server.model.seconds_per_step = 0.1
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json={"messages": MESSAGES}, timeout=0.4)
    assert server.idle_within(60)
    assert server.model.num_steps < len(server.model.reply_ids), "the reply was not stopped"


def test_health_answers_while_the_model_computes(server):
    server.model.permits = threading.Semaphore(4)
    connection = open_stream(server)
    health = server.health()
    assert (health["status"], health["active"]) == ("ok", 1)
    assert server.model.num_steps <= 4, "the model was not within a forward pass"
    connection.close()
    server.model.permits.release(100)
    assert server.idle_within(60)


def test_too_many_requests_are_rejected_with_retry_after(server):
    server.model.seconds_per_step = 0.05
    connections = [open_stream(server) for _ in range(2)]
    waiting = [http.client.HTTPConnection("127.0.0.1", server.port) for _ in range(2)]
    for connection in waiting:
        connection.request("POST", "/v1/chat/completions", json.dumps({"messages": MESSAGES}))
    while server.health()["active"] < 4:
        time.sleep(0.01)
    rejected = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": MESSAGES})
    assert rejected.status_code == 429
    assert rejected.headers["retry-after"]
    assert rejected.json()["error"]["type"] == "rate_limit_error"
    for connection in (*connections, *waiting):
        connection.close()
    assert server.idle_within(60)


def test_generations_run_in_one_batch(server):
    server.model.seconds_per_step = 0.1
    connections = [open_stream(server) for _ in range(2)]
    assert server.health()["active"] == 2, "the second began before the first had ended"
    for connection in connections:
        connection.close()
    assert server.idle_within(60)


def test_the_page_allows_no_foreign_and_no_inline_script(server):
    page = httpx.get(server.url)
    assert page.status_code == 200
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "<script>" not in page.text
    assert "style=" not in page.text
    assert httpx.get(f"{server.url}/../pyproject.toml").status_code == 404
    assert httpx.get(f"{server.url}/%2e%2e/app.py").status_code == 404
