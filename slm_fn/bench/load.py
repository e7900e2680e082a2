"""Clients of a server, good and bad: who reads to the end, leaves, reads slowly, sends too much or nonsense.

Invariant: what a client does is a function of its key and its turn; every word it hears is compared with the model's.
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

Kind = Literal["polite", "leaving", "slow", "oversized", "malformed", "half"]
SHARES: dict[Kind, int] = {"polite": 60, "leaving": 15, "slow": 10, "oversized": 4, "malformed": 7, "half": 4}
"""How often clients of each kind come, in per cent."""

MALFORMED: tuple[bytes, ...] = (
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
OVERSIZED = 3 << 20
SLOW_BUFFER = 2048  # bytes that a slow reader's socket takes


class Task(NamedTuple):
    """A request, and all that the model says to it."""

    path: str
    body: Mapping[str, Any]
    text: str = ""
    finish: str = ""
    num_tokens: int = 0


class Heard(NamedTuple):
    """What a client got: status, text, how it ended, when each piece came after the request was sent (seconds)."""

    kind: Kind
    status: int
    text: str = ""
    finish: str | None = None
    done: bool = False
    num_tokens: int = 0
    times: tuple[float, ...] = ()
    error: str = ""


async def hear(client: httpx.AsyncClient, task: Task, kind: Kind = "polite", pieces: int = 1 << 30) -> Heard:
    """Send a request and read its stream: to the end, or until some pieces came; a slow reader rests between them."""
    text, finish, done, tokens, times, error = "", None, False, 0, list[float](), ""
    begun = time.perf_counter()
    body = {**task.body, "stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", task.path, json=body) as answer:
        if answer.status_code != 200:
            return Heard(kind, answer.status_code, error=(await answer.aread())[:200].decode(errors="replace"))
        async for line in answer.aiter_lines():
            if not line or line.startswith(":"):  # a comment keeps a line open
                continue
            if line == "data: [DONE]":
                done = True
                continue
            event = _event(line)
            if event is None or "error" in event:
                error = line[:200]
                break
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            for choice in event["choices"]:
                finish = choice["finish_reason"] or finish
                said = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                if said:
                    text += said
                    times.append(time.perf_counter() - begun)
            if len(times) >= pieces:
                break
            if kind == "slow":
                await asyncio.sleep(0.05)
    return Heard(kind, 200, text, finish, done, tokens, tuple(times), error)


def _event(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line.removeprefix("data: "))
    except ValueError:
        return None


def wrong(task: Task, heard: Heard) -> str:
    """What is not as the model says; empty where all is well. Who left is held to what came before."""
    if heard.kind == "leaving" and not heard.done:
        return "" if task.text.startswith(heard.text) else f"heard {heard.text!r}, the model says {task.text!r}"
    found = (heard.text, heard.finish, heard.num_tokens, heard.done)
    wanted = (task.text, task.finish, task.num_tokens, True)
    return "" if found == wanted else f"heard {found}, the model says {wanted}"


def kind_of(key: Key) -> Kind:
    """The kind of client that a key is."""
    place = fold_in(key, "kind") % sum(SHARES.values())
    for kind, share in SHARES.items():
        place -= share
        if place < 0:
            return kind
    raise AssertionError("the shares add up")


async def visit(clients: tuple[httpx.AsyncClient, httpx.AsyncClient], task: Task, key: Key) -> Heard:
    """One visit of the client that a key is; `clients` are a usual one and one with small buffers."""
    kind = kind_of(key)
    try:
        if kind == "half":
            return await _half(str(clients[0].base_url), task)
        if kind in ("oversized", "malformed"):
            nonsense = MALFORMED[fold_in(key, "which") % len(MALFORMED)]
            content = b" " * OVERSIZED if kind == "oversized" else nonsense
            answer = await clients[0].post(task.path, content=content)
            return Heard(kind, answer.status_code)
        pieces = 1 + fold_in(key, "pieces") % 6 if kind == "leaving" else 1 << 30
        return await hear(clients[kind == "slow"], task, kind, pieces)
    except httpx.HTTPError as error:
        if kind == "oversized":  # a server may hang up on who does not stop talking
            return Heard(kind, 413)
        return Heard(kind, 0, error=f"{type(error).__name__}: {error}")


async def _half(url: str, task: Task) -> Heard:
    """Promise a body, send half of it and hang up."""
    place = urlsplit(url)
    _, writer = await asyncio.open_connection(place.hostname, place.port)
    body = json.dumps(dict(task.body)).encode()
    head = f"POST {task.path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[: len(body) // 2])
    await writer.drain()
    writer.close()
    return Heard("half", 400)


def client(url: str, slow: bool = False) -> httpx.AsyncClient:
    """A client for any number of streams at once."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    options = [(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER)] if slow else None
    transport = httpx.AsyncHTTPTransport(limits=limits, socket_options=options)
    return httpx.AsyncClient(base_url=url, transport=transport, timeout=httpx.Timeout(120.0), trust_env=False)


async def storm(
    url: str, tasks: Sequence[Task], streams: int, seconds: float, key: Key, tell: Callable[[Task, Heard], None]
) -> None:
    """Some clients at once, each one visit after another, for some seconds; visits under way are ended properly."""
    end = time.monotonic() + seconds

    async def one(stream: int) -> None:
        turn = 0
        while time.monotonic() < end:
            own = fold_in(key, f"{stream}/{turn}")
            task, turn = tasks[fold_in(own, "task") % len(tasks)], turn + 1
            heard = await visit(clients, task, own)
            tell(task, heard)
            if heard.status in (0, 429, 503):
                await asyncio.sleep(0.2)

    async with client(url) as usual, client(url, slow=True) as slow:
        clients = (usual, slow)
        await asyncio.gather(*(one(stream) for stream in range(streams)))


async def together(url: str, tasks: Sequence[Task]) -> tuple[list[Heard], float]:
    """All of some requests at once; what each heard, and the seconds until the last one ended."""
    async with client(url) as usual:
        begun = time.perf_counter()
        heard = await asyncio.gather(*(hear(usual, task) for task in tasks))
        return list(heard), time.perf_counter() - begun
