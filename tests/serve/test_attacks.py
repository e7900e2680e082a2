"""What people try against a server: keys, origins, paths, headers, slow and huge bodies, deep JSON, shared streams."""

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
from parrot import TEXT

from slm_fn.serve import keys
from slm_fn.serve.config import ServeConfig

BODY = {"messages": [{"role": "user", "content": "hello secretword"}]}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def opened():
    return {name: keys.make(name) for name in ("ada", "bob")}


@pytest.fixture(scope="module")
def guarded(serve, parrot, opened):
    """A server with everything on, and short clocks."""
    config = ServeConfig(
        name="parrot",
        keys=tuple(stored for _, stored in opened.values()),
        cors=("https://me.example",),
        requests_per_minute=60,
        tokens_per_minute=2000,
        head_timeout=0.5,
        body_timeout=0.5,
        send_timeout=0.5,
        max_reply=60,
    )
    with serve(parrot, config) as running:
        yield running


def ask(server, key=None, path=CHAT, body=BODY, **headers):
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    return httpx.post(server.url + path, json=body, headers=headers, timeout=30)


def test_only_a_key_in_the_header_opens(guarded, opened):
    key, stored = opened["ada"]
    assert ask(guarded, key).json()["choices"][0]["message"]["content"] == TEXT
    answers = [ask(guarded), *(ask(guarded, wrong) for wrong in ("x", key + "x", stored.hash, "ada"))]
    answers += [ask(guarded, path=f"{CHAT}?{name}={key}") for name in ("api_key", "key", "authorization", "token")]
    answers += [
        ask(guarded, **{"x-api-key": key}),
        ask(guarded, authorization=f"Basic {key}"),
        ask(guarded, cookie=key),
    ]
    answers += [httpx.get(guarded.url + path) for path in ("/v1/models", "/metrics", "/models/parrot")]
    for answer in answers:
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["type"] == "authentication_error"
        assert key not in answer.text
    for path in ("/health", "/health/ready", "/", "/schema/openapi.json"):
        assert httpx.get(guarded.url + path).status_code == 200


def test_requests_and_tokens_have_a_rate_per_key(serve, parrot, opened):
    config = ServeConfig(name="parrot", keys=tuple(s for _, s in opened.values()), requests_per_minute=3)
    ada, bob = (key for key, _ in opened.values())
    with serve(parrot, config) as server:
        answers = [ask(server, ada, **{"x-forwarded-for": f"10.0.0.{i}"}) for i in range(4)]
        assert [a.status_code for a in answers] == [200, 200, 200, 429]
        assert answers[-1].json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
        assert ask(server, bob).status_code == 200
        assert httpx.get(f"{server.url}/health").status_code == 200
    config = ServeConfig(name="parrot", keys=config.keys, tokens_per_minute=200)
    with serve(parrot, config) as server:
        server.app.state.rate.clock = lambda: 0.0
        first = ask(server, ada, body={**BODY, "max_tokens": 60})
        assert first.status_code == 200
        left = server.app.state.rate.level("key ada")
        assert abs(left - (200 - first.json()["usage"]["total_tokens"])) < 5, "what was reserved and not used came back"
        assert ask(server, ada, body={**BODY, "max_tokens": 199}).status_code == 429
        assert ask(server, bob, body={**BODY, "max_tokens": 60}).status_code == 200


def test_pages_of_listed_origins_and_no_others(guarded, opened):
    mine, other = "https://me.example", "https://evil.example"
    wanted = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    preflight = httpx.options(guarded.url + CHAT, headers={"origin": mine, **wanted})
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == mine
    assert "access-control-allow-credentials" not in preflight.headers
    assert httpx.options(guarded.url + CHAT, headers={"origin": other, **wanted}).status_code == 400
    answer = ask(guarded, opened["ada"][0], origin=mine)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == mine
    refused = ask(guarded, opened["ada"][0], origin=other)
    assert refused.status_code == 403
    assert "access-control-allow-origin" not in refused.headers
    assert ask(guarded, "wrong", origin=mine).headers["access-control-allow-origin"] == mine, "a page may read errors"
    script = httpx.get(f"{guarded.url}/widget.js", headers={"origin": mine})
    assert script.headers["cross-origin-resource-policy"] == "cross-origin"
    assert httpx.get(guarded.url).headers["cross-origin-resource-policy"] == "same-origin"


def test_files_outside_are_out_of_reach(guarded):
    for path in ("/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "/static/../../app.py", "//etc/passwd", "/.%00./x",
                 "/....//app.py", "/%252e%252e/app.py", "/C:/x", "/..\\app.py", "/" + "a" * 5000):  # fmt: skip
        with closing(http.client.HTTPConnection("127.0.0.1", guarded.port, timeout=10)) as link:
            link.putrequest("GET", path, skip_host=False)
            link.endheaders()
            answer = link.getresponse()
            assert answer.status in (400, 404), path
            assert b"create_app" not in answer.read()


def test_headers_cannot_be_injected(guarded, opened):
    key = opened["ada"][0]
    for body in ({**BODY, "model": "x\r\nset-cookie: a=1"}, {**BODY, "user": "\r\n\r\nHTTP/1.1 200 OK"}):
        answer = ask(guarded, key, body=body)
        assert "set-cookie" not in answer.headers
    close = b"HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    raw = b"GET /v1/models/x%0d%0aset-cookie:%20a=1 " + close + f"Authorization: Bearer {key}\r\n\r\n".encode()
    assert b"set-cookie: a" not in talk_raw(guarded, raw).partition(b"\r\n\r\n")[0].lower()
    assert talk_raw(guarded, b"GET / HTTP/1.1\r\nHost: a\r\nX: a\nb\x00\r\n\r\n").startswith(b"HTTP/1.1 400")
    twice = b"POST / " + close + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x"
    assert b"200 OK" not in talk_raw(guarded, twice)


def talk_raw(server, data, wait=3.0):
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=wait)) as link:
        link.sendall(data)
        out = b""
        try:
            while chunk := link.recv(65536):
                out += chunk
                if b"\r\n\r\n" in out and wait < 1:
                    break
        except (TimeoutError, ConnectionResetError):
            pass
        return out


def test_slow_heads_and_bodies_hold_nothing(guarded, opened):
    start = time.monotonic()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {opened['ada'][0]}\r\nContent-Length: 999\r\n\r\n"
    sent = (
        b"GET / HTTP/1.1\r\nHost:",
        b"",
        b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET /he",
        head.encode() + b'{"mess',
    )
    with ThreadPoolExecutor(len(sent)) as clients:
        endless, nothing, second, answer = clients.map(lambda data: talk_raw(guarded, data), sent)
    assert endless == b"", "a head that never ends"
    assert nothing == b"", "no head at all"
    assert second.count(b"HTTP/1.1 200") == 1
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"error"' in answer
    assert time.monotonic() - start < 8
    assert guarded.idle_within(2)


def test_who_leaves_in_the_middle_of_a_body_is_no_error_of_the_server(guarded, opened, caplog):
    head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {opened['ada'][0]}\r\nContent-Length: 999\r\n\r\n"
    with caplog.at_level(logging.INFO):
        with closing(socket.create_connection(("127.0.0.1", guarded.port))) as link:
            link.sendall(head.encode() + b'{"mess')
        end = time.monotonic() + 3
        while not (lines := [r.getMessage() for r in caplog.records if r.name == "slm.access"]):
            assert time.monotonic() < end
            time.sleep(0.01)
    assert json.loads(lines[0])["status"] == 499
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_reader_who_stops_reading_is_left_alone(serve, parrot):
    """Small buffers on both sides: what nobody takes piles up in the server, whose patience ends."""
    body = {**BODY, "stream": True, "n": 8, "logprobs": True, "top_logprobs": 20}
    data = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    with serve(parrot, ServeConfig(name="parrot", send_timeout=0.3), send_buffer=4096) as server:
        for waits, whole in ((0.0, True), (1.0, False)):
            with closing(socket.socket()) as link:
                link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                link.settimeout(10)
                link.connect(("127.0.0.1", server.port))
                link.sendall(head.encode() + data)
                time.sleep(waits)
                out = b""
                with suppress(ConnectionResetError):
                    while chunk := link.recv(65536):
                        out += chunk
            assert out.startswith(b"HTTP/1.1 200")
            assert (b"[DONE]" in out) is whole
        assert server.idle_within(2)


def test_more_prompts_than_fit_cost_nothing(serve, guarded, opened):
    body = {"prompt": [[1]] * 30_000, "n": 16, "max_tokens": 1}
    start = time.monotonic()
    answer = ask(guarded, opened["bob"][0], path="/v1/completions", body=body)
    assert answer.status_code == 400
    assert "480000 replies at once" in answer.text
    assert time.monotonic() - start < 3, "millions of jobs were made, and only then refused"


def test_huge_and_deep_bodies_are_refused(guarded, opened):
    key = opened["bob"][0]
    assert ask(guarded, key, body={"messages": [{"role": "user", "content": "x" * 10_000_000}]}).status_code == 413
    for deep in (
        b"[" * 400_000,
        b'{"messages":' * 50_000,
        b'{"messages":[{"role":"user","content":"x"}],"a":' + b"[" * 9000,
    ):
        for path in (CHAT, "/v1/completions", "/tokenize", "/detokenize"):
            headers = {"authorization": f"Bearer {key}"}
            answer = httpx.post(guarded.url + path, content=deep, headers=headers, timeout=30)
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["type"] == "invalid_request_error"
    for odd in (
        b"\xff\xfe",
        b'{"messages":[{"role":"user","content":"\xff"}]}',
        b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        b"",
        b"null",
        b'{"seed":1e400}',
    ):
        answer = httpx.post(guarded.url + CHAT, content=odd, headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 400, answer.text


def test_many_at_once_get_their_own_words(serve, parrot):
    """Each thread reuses one connection for stream after stream; some leave in the middle."""
    wrong = []

    def client(number, url):
        chance = random.Random(number)
        with httpx.Client(base_url=url, timeout=60) as link:
            for _ in range(3):
                said, cut = "", chance.random() < 0.3
                with link.stream("POST", CHAT, json={**BODY, "stream": True}) as answer:
                    for line in answer.iter_lines():
                        if line.startswith("data: {"):
                            said += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
                        if cut and said:
                            break
                if answer.status_code != 200 or not (TEXT.startswith(said) if cut else said == TEXT):
                    wrong.append((answer.status_code, said))

    with serve(parrot, ServeConfig(name="parrot", max_batch=4)) as server:
        threads = [threading.Thread(target=client, args=(i, server.url)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert server.idle_within(3)


def test_the_log_tells_numbers_and_no_words(guarded, opened, caplog):
    key = opened["bob"][0]
    with caplog.at_level(logging.INFO, "slm.access"):
        ask(guarded, key, path=f"{CHAT}?api_key={key}")
        httpx.get(f"{guarded.url}/no%0d%0alog-line")
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "slm.access"]
    assert [line["status"] for line in lines] == [200, 404]
    assert lines[0] | {"who": "bob", "method": "POST", "path": CHAT, "finish": "stop"} == lines[0]
    assert lines[0]["completion_tokens"] > 10
    assert lines[0]["id"].startswith("req_")
    assert lines[0]["ms"] > 1
    assert key not in caplog.text
    assert "secretword" not in caplog.text
    assert "I say" not in caplog.text


def test_metrics_tell_what_happened(serve, parrot):
    with serve(parrot, ServeConfig(name="parrot", open_metrics=True)) as server:
        ask(server)
        told = dict(
            line.rsplit(" ", 1) for line in httpx.get(f"{server.url}/metrics").text.splitlines() if line[0] != "#"
        )
    assert told['slm_generations_total{how="stop"}'] == "1.0"
    assert float(told["slm_completion_tokens_total"]) > 10
    assert told["slm_first_token_seconds_count"] == "1.0"
    assert float(told["slm_between_tokens_seconds_count"]) > 10
    assert told["slm_waiting"] == told["slm_running"] == "0.0"
    assert "process_resident_memory_bytes" in told


@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")  # the fuzzer's own strategies
@pytest.mark.parametrize("examples", [3, pytest.param(300, marks=pytest.mark.slow)])
def test_no_request_that_the_document_allows_breaks_the_server(serve, parrot, examples):
    with serve(parrot, ServeConfig(name="parrot")) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/schema/openapi.json")
        for operation in schema.get_all_operations():
            run_one(operation.ok(), server, examples)


def run_one(operation, server, examples):
    @given(case=operation.as_strategy())
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def check(case):
        answer = case.call(base_url=server.url, timeout=30)
        assert answer.status_code < 500, (operation.label, answer.text)

    check()
