"""Attacks on a server: keys, origins, paths, headers, slow and huge bodies, deep JSON, fuzzing."""

import http.client
import json
import logging
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from scripted_model import TEXT

from slm_fn.serve import api_keys
from slm_fn.serve.config import ServeConfig
from slm_fn.serve.routes import in_flight

BODY = {"messages": [{"role": "user", "content": "hello secretword"}]}
CHAT = "/v1/chat/completions"
OUTSIDE_PATHS = [
    "/../app.py",
    "/%2e%2e/app.py",
    "/..%2fapp.py",
    "/static/../../app.py",
    "//etc/passwd",
    "/.%00./x",
    "/....//app.py",
    "/%252e%252e/app.py",
    "/C:/x",
    "/..\\app.py",
    "/" + "a" * 5000,
]


def request_head(length, *headers, path=CHAT):
    lines = [f"POST {path} HTTP/1.1", "Host: a", *headers, f"Content-Length: {length}", "", ""]
    return "\r\n".join(lines).encode()


@pytest.fixture(scope="module")
def keys():
    return {name: api_keys.generate(name) for name in ("ada", "bob")}


@pytest.fixture(scope="module")
def guarded(serve, scripted_model, keys):
    """A server with every protection enabled, and short time-outs."""
    config = ServeConfig(
        name="scripted",
        keys=tuple(stored for _, stored in keys.values()),
        cors=("https://me.example",),
        requests_per_minute=60,
        tokens_per_minute=2000,
        head_timeout=0.5,
        body_timeout=0.5,
        send_timeout=0.5,
        max_reply=60,
    )
    with serve(scripted_model, config) as running:
        yield running


def post(server, key=None, path=CHAT, body=BODY, **headers):
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    return httpx.post(server.url + path, json=body, headers=headers, timeout=30)


def test_only_a_key_in_the_header_is_accepted(guarded, keys):
    key, stored = keys["ada"]
    assert post(guarded, key).json()["choices"][0]["message"]["content"] == TEXT
    responses = [
        post(guarded),
        *(post(guarded, invalid) for invalid in ("x", key + "x", stored.hash, "ada")),
    ]
    responses += [
        post(guarded, path=f"{CHAT}?{name}={key}")
        for name in ("api_key", "key", "authorization", "token")
    ]
    responses += [
        post(guarded, **{"x-api-key": key}),
        post(guarded, authorization=f"Basic {key}"),
        post(guarded, cookie=key),
    ]
    responses += [
        httpx.get(guarded.url + path) for path in ("/v1/models", "/metrics", "/models/scripted")
    ]
    for response in responses:
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["type"] == "authentication_error"
        assert key not in response.text
    for path in ("/health", "/health/ready", "/", "/schema/openapi.json"):
        assert httpx.get(guarded.url + path).status_code == 200


def test_requests_and_tokens_have_a_rate_per_key(serve, scripted_model, keys):
    config = ServeConfig(
        name="scripted", keys=tuple(s for _, s in keys.values()), requests_per_minute=3
    )
    ada, bob = (key for key, _ in keys.values())
    with serve(scripted_model, config) as server:
        responses = [post(server, ada, **{"x-forwarded-for": f"10.0.0.{i}"}) for i in range(4)]
        assert [r.status_code for r in responses] == [200, 200, 200, 429]
        assert responses[-1].json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(responses[-1].headers["retry-after"]) <= 60
        assert post(server, bob).status_code == 200
        assert httpx.get(f"{server.url}/health").status_code == 200
    config = ServeConfig(name="scripted", keys=config.keys, tokens_per_minute=200)
    with serve(scripted_model, config) as server:
        server.services.token_budget.clock = lambda: 0.0
        first = post(server, ada, body={**BODY, "max_tokens": 60})
        assert first.status_code == 200
        available = server.services.token_budget.available("key ada")
        assert abs(available - (200 - first.json()["usage"]["total_tokens"])) < 5, (
            "unused reserved tokens were returned"
        )
        assert post(server, ada, body={**BODY, "max_tokens": 199}).status_code == 429
        assert post(server, bob, body={**BODY, "max_tokens": 60}).status_code == 200


def test_only_pages_of_listed_origins_are_accepted(guarded, keys):
    mine, other = "https://me.example", "https://evil.example"
    preflight_headers = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    preflight = httpx.options(guarded.url + CHAT, headers={"origin": mine, **preflight_headers})
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == mine
    assert "access-control-allow-credentials" not in preflight.headers
    assert (
        httpx.options(
            guarded.url + CHAT, headers={"origin": other, **preflight_headers}
        ).status_code
        == 400
    )
    response = post(guarded, keys["ada"][0], origin=mine)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == mine
    rejected = post(guarded, keys["ada"][0], origin=other)
    assert rejected.status_code == 403
    assert "access-control-allow-origin" not in rejected.headers
    assert post(guarded, "wrong", origin=mine).headers["access-control-allow-origin"] == mine, (
        "a listed page may read errors"
    )
    script = httpx.get(f"{guarded.url}/widget.js", headers={"origin": mine})
    assert script.headers["cross-origin-resource-policy"] == "cross-origin"
    assert httpx.get(guarded.url).headers["cross-origin-resource-policy"] == "same-origin"


def test_files_outside_the_static_folder_cannot_be_read(guarded):
    for path in OUTSIDE_PATHS:
        with closing(
            http.client.HTTPConnection("127.0.0.1", guarded.port, timeout=10)
        ) as connection:
            connection.putrequest("GET", path, skip_host=False)
            connection.endheaders()
            response = connection.getresponse()
            assert response.status in (400, 404), path
            assert b"create_app" not in response.read()


def test_headers_cannot_be_injected(guarded, keys):
    key = keys["ada"][0]
    for body in (
        {**BODY, "model": "x\r\nset-cookie: a=1"},
        {**BODY, "user": "\r\n\r\nHTTP/1.1 200 OK"},
    ):
        response = post(guarded, key, body=body)
        assert "set-cookie" not in response.headers
    close = b"HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    raw = (
        b"GET /v1/models/x%0d%0aset-cookie:%20a=1 "
        + close
        + f"Authorization: Bearer {key}\r\n\r\n".encode()
    )
    assert b"set-cookie: a" not in send_raw(guarded, raw).partition(b"\r\n\r\n")[0].lower()
    assert send_raw(guarded, b"GET / HTTP/1.1\r\nHost: a\r\nX: a\nb\x00\r\n\r\n").startswith(
        b"HTTP/1.1 400"
    )
    twice = (
        b"POST / "
        + close
        + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x"
    )
    assert b"200 OK" not in send_raw(guarded, twice)


def send_raw(server, data):
    """The bytes sent until the server closes the connection; a TimeoutError if it never does."""
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=60)) as connection:
        connection.sendall(data)
        out = b""
        with suppress(ConnectionResetError):
            while chunk := connection.recv(65536):
                out += chunk
        return out


def test_slow_heads_and_bodies_are_disconnected(guarded, keys):
    head = request_head(999, f"Authorization: Bearer {keys['ada'][0]}")
    sent = (
        b"GET / HTTP/1.1\r\nHost:",
        b"",
        b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET /he",
        head + b'{"mess',
    )
    with ThreadPoolExecutor(len(sent)) as clients:
        endless, no_head, second, response = clients.map(lambda data: send_raw(guarded, data), sent)
    assert endless == b"", "a head that never ends"
    assert no_head == b"", "no head at all"
    assert second.count(b"HTTP/1.1 200") == 1
    assert response.startswith(b"HTTP/1.1 408")
    assert b'"error"' in response
    assert guarded.idle_within(60)


def access_log_lines(caplog):
    """The lines of the access log once there is one: a request has ended."""
    deadline = time.monotonic() + 60
    while not (lines := [r.getMessage() for r in caplog.records if r.name == "slm.access"]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return lines


def test_a_disconnect_within_a_body_is_not_an_error_of_the_server(guarded, keys, caplog):
    head = request_head(999, f"Authorization: Bearer {keys['ada'][0]}")
    with caplog.at_level(logging.INFO):
        with closing(socket.create_connection(("127.0.0.1", guarded.port))) as connection:
            connection.sendall(head + b'{"mess')
        lines = access_log_lines(caplog)
    assert json.loads(lines[0])["status"] == 499
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_client_that_stops_reading_is_disconnected(serve, scripted_model, caplog):
    """Small buffers on both sides, so unread data fills the server's until its time-out."""
    body = {**BODY, "stream": True, "n": 8, "logprobs": True, "top_logprobs": 20}
    data = json.dumps(body).encode()
    head = request_head(len(data), "Connection: close")
    for send_timeout, reads_at_once in ((300.0, True), (0.3, False)):
        config = ServeConfig(name="scripted", send_timeout=send_timeout)
        with (
            caplog.at_level(logging.INFO),
            serve(scripted_model, config, send_buffer_bytes=4096) as server,
        ):
            caplog.clear()
            with closing(socket.socket()) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.settimeout(60)
                connection.connect(("127.0.0.1", server.port))
                connection.sendall(head + data)
                if not reads_at_once:
                    access_log_lines(caplog)
                out = b""
                with suppress(ConnectionResetError):
                    while chunk := connection.recv(65536):
                        out += chunk
            assert out.startswith(b"HTTP/1.1 200")
            assert (b"[DONE]" in out) is reads_at_once
            assert server.idle_within(60)


def test_more_prompts_than_fit_are_rejected_before_a_job_is_made(guarded, keys, monkeypatch):
    body = {"prompt": [[1]] * 30_000, "n": 16, "max_tokens": 1}
    monkeypatch.delattr(in_flight, "Job")
    response = post(guarded, keys["bob"][0], path="/v1/completions", body=body)
    assert response.status_code == 400
    assert "480000 replies requested at once" in response.text


def test_huge_and_deep_bodies_are_rejected(guarded, keys):
    key = keys["bob"][0]
    assert (
        post(
            guarded, key, body={"messages": [{"role": "user", "content": "x" * 10_000_000}]}
        ).status_code
        == 413
    )
    for deep in (
        b"[" * 400_000,
        b'{"messages":' * 50_000,
        b'{"messages":[{"role":"user","content":"x"}],"a":' + b"[" * 9000,
    ):
        for path in (CHAT, "/v1/completions", "/tokenize", "/detokenize"):
            headers = {"authorization": f"Bearer {key}"}
            response = httpx.post(guarded.url + path, content=deep, headers=headers, timeout=30)
            assert response.status_code == 400, response.text
            assert response.json()["error"]["type"] == "invalid_request_error"
    for invalid in (
        b"\xff\xfe",
        b'{"messages":[{"role":"user","content":"\xff"}]}',
        b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        b"",
        b"null",
        b'{"seed":1e400}',
    ):
        response = httpx.post(
            guarded.url + CHAT, content=invalid, headers={"authorization": f"Bearer {key}"}
        )
        assert response.status_code == 400, response.text


def test_concurrent_clients_get_their_own_replies(serve, scripted_model):
    """Each thread uses one connection for several streams; some disconnect in the middle."""
    problems = []

    def client(number, url):
        rng = random.Random(number)
        with httpx.Client(base_url=url, timeout=60) as connection:
            for _ in range(3):
                text = ""
                leaves_early = rng.random() < 0.3
                with connection.stream("POST", CHAT, json={**BODY, "stream": True}) as response:
                    for line in response.iter_lines():
                        if line.startswith("data: {"):
                            text += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
                        if leaves_early and text:
                            break
                if response.status_code != 200 or not (
                    TEXT.startswith(text) if leaves_early else text == TEXT
                ):
                    problems.append((response.status_code, text))

    with serve(scripted_model, ServeConfig(name="scripted", max_batch=4)) as server:
        threads = [threading.Thread(target=client, args=(i, server.url)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        assert server.idle_within(60)


def test_the_log_has_numbers_and_no_text(guarded, keys, caplog):
    key = keys["bob"][0]
    with caplog.at_level(logging.INFO, "slm.access"):
        post(guarded, key, path=f"{CHAT}?api_key={key}")
        httpx.get(f"{guarded.url}/no%0d%0alog-line")
    lines = [
        json.loads(record.getMessage()) for record in caplog.records if record.name == "slm.access"
    ]
    assert [line["status"] for line in lines] == [200, 404]
    assert lines[0] | {"who": "bob", "method": "POST", "path": CHAT, "finish": "stop"} == lines[0]
    assert lines[0]["completion_tokens"] > 10
    assert lines[0]["id"].startswith("req_")
    assert lines[0]["ms"] > 1
    assert key not in caplog.text
    assert "secretword" not in caplog.text
    assert "I say" not in caplog.text


def test_metrics_count_tokens_and_generations(serve, scripted_model):
    with serve(scripted_model, ServeConfig(name="scripted", open_metrics=True)) as server:
        post(server)
        values = dict(
            line.rsplit(" ", 1)
            for line in httpx.get(f"{server.url}/metrics").text.splitlines()
            if line[0] != "#"
        )
    assert values['slm_generations_total{how="stop"}'] == "1.0"
    assert float(values["slm_completion_tokens_total"]) > 10
    assert values["slm_first_token_seconds_count"] == "1.0"
    assert float(values["slm_between_tokens_seconds_count"]) > 10
    assert values["slm_waiting"] == values["slm_running"] == "0.0"
    assert "process_resident_memory_bytes" in values


@pytest.mark.filterwarnings(
    "ignore:Do not use the `random` module inside strategies"
)  # the fuzzer's own strategies
@pytest.mark.parametrize("examples", [3, pytest.param(300, marks=pytest.mark.slow)])
def test_no_request_that_the_schema_allows_breaks_the_server(serve, scripted_model, examples):
    with serve(scripted_model, ServeConfig(name="scripted")) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/schema/openapi.json")
        for operation in schema.get_all_operations():
            run_operation(operation.ok(), server, examples)


def run_operation(operation, server, examples):
    @given(case=operation.as_strategy())
    @settings(
        max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    def check(case):
        response = case.call(base_url=server.url, timeout=30)
        assert response.status_code < 500, (operation.label, response.text)

    check()
