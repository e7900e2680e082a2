"""HTTP clients that load a server: some read to the end, others disconnect or send invalid bodies.

Invariant: what a client does depends on its key alone.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import httpx

from slm_fn.core.random import Key, fold_in

Kind = Literal["complete", "disconnecting", "slow", "oversized", "malformed", "truncated"]
"""What a client does: it reads to the end, disconnects early, reads slowly, or sends a body that is
too large, malformed or cut off."""
PERCENT_BY_KIND: dict[Kind, int] = {
    "complete": 60,
    "disconnecting": 15,
    "slow": 10,
    "oversized": 4,
    "malformed": 7,
    "truncated": 4,
}
STREAMING_KINDS = ("complete", "disconnecting", "slow")
"""Clients that send a valid request; the others send an invalid one."""

MALFORMED_BODIES: tuple[bytes, ...] = (
    b"",
    b"{",
    b"\xff\xfe\x00",
    b"[]",
    b"null",
    b'{"messages": "hello"}',
    b'{"messages": [{"role": 1}]}',
    b'{"messages": [], "max_tokens": -1}',
    b'{"messages": [{"role": "user", "content": "x"}], "temperature": "hot"}',
    b'{"messages": [{"role": "user", "content": "x"}], "temperature": -1}',
    b'{"messages": [{"role": "user", "content": "x"}], "model": "../../etc/passwd"}',
    b'{"messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
)
OVERSIZED_BYTES = 3 << 20
SLOW_RECEIVE_BUFFER_BYTES = 2048
SLOW_SECONDS = 0.05
"""How long a slow reader waits after each event."""
RETRY_SECONDS = 0.2
MAX_EARLY_DELTAS = 6
"""The most text deltas that a disconnecting client reads."""
UNLIMITED = 1 << 30


class LoadRequest(NamedTuple):
    """A request, and the reply that the model gives without a server.

    Attributes:
        path: of the URL.
        body: the JSON body, without the fields on streaming.
        expected_text: the text of the reply.
        expected_finish: its finish reason.
        expected_tokens: its number of tokens.
    """

    path: str
    body: Mapping[str, Any]
    expected_text: str = ""
    expected_finish: str = ""
    expected_tokens: int = 0


class ClientResult(NamedTuple):
    """What a client received.

    Attributes:
        kind: what the client does.
        status: the HTTP status; 0 if the connection failed.
        text: the text of all deltas.
        finish: the finish reason; None if none arrived.
        is_done: whether the stream ended with `[DONE]`.
        num_tokens: by the server's usage report; 0 without one.
        delta_seconds: when each text delta arrived, in seconds after the request.
        error: the error message; empty without an error.
    """

    kind: Kind
    status: int
    text: str = ""
    finish: str | None = None
    is_done: bool = False
    num_tokens: int = 0
    delta_seconds: tuple[float, ...] = ()
    error: str = ""


class Exchange(NamedTuple):
    """A request and what its client received."""

    request: LoadRequest
    result: ClientResult


class HttpClients(NamedTuple):
    """The HTTP clients that all simulated clients share: one with usual buffers, one with small."""

    normal: httpx.AsyncClient
    slow: httpx.AsyncClient


class _Transcript:
    """Collects the events of one stream."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.text = ""
        self.finish: str | None = None
        self.is_done = False
        self.num_tokens = 0
        self.delta_seconds: list[float] = []
        self.error = ""

    def add(self, event: dict[str, Any]) -> None:
        usage = event.get("usage") or {}
        self.num_tokens = usage.get("completion_tokens", self.num_tokens)
        for choice in event["choices"]:
            self.finish = choice["finish_reason"] or self.finish
            delta = choice.get("delta") or {}
            text = choice.get("text") or delta.get("content") or ""
            if text:
                self.text += text
                self.delta_seconds.append(time.perf_counter() - self.started)

    def result(self, kind: Kind) -> ClientResult:
        return ClientResult(
            kind=kind,
            status=200,
            text=self.text,
            finish=self.finish,
            is_done=self.is_done,
            num_tokens=self.num_tokens,
            delta_seconds=tuple(self.delta_seconds),
            error=self.error,
        )


async def read_stream(
    client: httpx.AsyncClient,
    request: LoadRequest,
    kind: Kind = "complete",
    max_deltas: int = UNLIMITED,
) -> ClientResult:
    """Sends a request and reads its stream.

    Args:
        client: the HTTP client.
        request: what to send.
        kind: a `slow` reader waits after each event.
        max_deltas: disconnects after so many text deltas.
    """
    transcript = _Transcript(time.perf_counter())
    body = {**request.body, "stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", request.path, json=body) as response:
        if response.status_code != 200:
            error = (await response.aread())[:200].decode(errors="replace")
            return ClientResult(kind, response.status_code, error=error)
        async for line in response.aiter_lines():
            if not line or line.startswith(":"):  # a comment keeps the connection open
                continue
            if line == "data: [DONE]":
                transcript.is_done = True
                continue
            event = _parse_event(line)
            if event is None or "error" in event:
                transcript.error = line[:200]
                break
            transcript.add(event)
            if len(transcript.delta_seconds) >= max_deltas:
                break
            if kind == "slow":
                await asyncio.sleep(SLOW_SECONDS)
    return transcript.result(kind)


def _parse_event(line: str) -> dict[str, Any] | None:
    try:
        event: dict[str, Any] = json.loads(line.removeprefix("data: "))
    except ValueError:
        return None
    return event


def choose_kind(key: Key) -> Kind:
    """Returns the kind of a client, drawn by `PERCENT_BY_KIND`."""
    remainder = fold_in(key, "kind") % sum(PERCENT_BY_KIND.values())
    for kind, percent in PERCENT_BY_KIND.items():
        remainder -= percent
        if remainder < 0:
            return kind
    raise AssertionError("the remainder is below the sum of all kinds")


async def run_client(clients: HttpClients, request: LoadRequest, key: Key) -> ClientResult:
    """Sends one request as the kind of client that the key draws."""
    kind = choose_kind(key)
    try:
        if kind == "truncated":
            return await _send_truncated(str(clients.normal.base_url), request)
        if kind == "oversized":
            return await _send_invalid(clients.normal, request, kind, b" " * OVERSIZED_BYTES)
        if kind == "malformed":
            body = MALFORMED_BODIES[fold_in(key, "which") % len(MALFORMED_BODIES)]
            return await _send_invalid(clients.normal, request, kind, body)
        max_deltas = UNLIMITED
        if kind == "disconnecting":
            max_deltas = 1 + fold_in(key, "pieces") % MAX_EARLY_DELTAS
        client = clients.slow if kind == "slow" else clients.normal
        return await read_stream(client, request, kind, max_deltas)
    except httpx.HTTPError as error:
        if kind == "oversized":  # a server may close the connection while the body is still sent
            return ClientResult(kind, 413)
        return ClientResult(kind, 0, error=f"{type(error).__name__}: {error}")


async def _send_invalid(
    client: httpx.AsyncClient, request: LoadRequest, kind: Kind, body: bytes
) -> ClientResult:
    response = await client.post(request.path, content=body)
    return ClientResult(kind, response.status_code)


async def _send_truncated(url: str, request: LoadRequest) -> ClientResult:
    """Announces a body, sends half of it and closes the connection."""
    address = urlsplit(url)
    _, writer = await asyncio.open_connection(address.hostname, address.port)
    body = json.dumps(dict(request.body)).encode()
    head = (
        f"POST {request.path} HTTP/1.1\r\n"
        f"Host: {address.netloc}\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body[: len(body) // 2])
    await writer.drain()
    writer.close()
    return ClientResult("truncated", 400)


def make_http_client(url: str, is_slow: bool = False) -> httpx.AsyncClient:
    """Returns an HTTP client for any number of streams at once.

    Args:
        url: of the server.
        is_slow: gives its sockets a small receive buffer.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    small_buffer = [(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_RECEIVE_BUFFER_BYTES)]
    transport = httpx.AsyncHTTPTransport(
        limits=limits, socket_options=small_buffer if is_slow else None
    )
    return httpx.AsyncClient(
        base_url=url, transport=transport, timeout=httpx.Timeout(120.0), trust_env=False
    )


async def run_load(
    url: str,
    requests: Sequence[LoadRequest],
    num_streams: int,
    seconds: float,
    key: Key,
    on_exchange: Callable[[Exchange], None],
) -> None:
    """Keeps a number of clients busy for some time; requests in flight at its end are finished.

    Args:
        url: of the server.
        requests: what clients draw their requests from.
        num_streams: clients at a time; each sends one request after another.
        seconds: until no new request is sent.
        key: draws the requests and the kinds of the clients.
        on_exchange: gets every request with its result.
    """
    end = time.monotonic() + seconds

    async def run_stream(clients: HttpClients, stream: int) -> None:
        num_sent = 0
        while time.monotonic() < end:
            request_key = fold_in(key, f"{stream}/{num_sent}")
            request = requests[fold_in(request_key, "task") % len(requests)]
            num_sent += 1
            result = await run_client(clients, request, request_key)
            on_exchange(Exchange(request, result))
            if result.status in (0, 429, 503):
                await asyncio.sleep(RETRY_SECONDS)

    async with make_http_client(url) as normal, make_http_client(url, is_slow=True) as slow:
        clients = HttpClients(normal, slow)
        await asyncio.gather(*(run_stream(clients, stream) for stream in range(num_streams)))


async def run_together(
    url: str, requests: Sequence[LoadRequest]
) -> tuple[list[ClientResult], float]:
    """Sends all requests at once; returns their results, and the seconds until the last ended."""
    async with make_http_client(url) as client:
        started = time.perf_counter()
        results = await asyncio.gather(*(read_stream(client, request) for request in requests))
        return list(results), time.perf_counter() - started
