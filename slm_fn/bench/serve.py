"""How a server bears many streams: speed, first tokens, wrong words, memory, and its end; beside llama.cpp with slots.

Invariant: the server is a process of its own, and every stream it completes is compared with the model asked directly.
"""

from __future__ import annotations

import asyncio
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from slm_fn.bench import load, served
from slm_fn.bench.load import Heard, Task
from slm_fn.bench.served import Served
from slm_fn.core.random import Key, fold_in
from slm_fn.pipeline import model as models
from slm_fn.pipeline import talk
from slm_fn.pipeline.model import Model
from slm_fn.text.chat import Message

Note = Callable[[str], None]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.9},
    {"temperature": 1.5, "min_p": 0.1},
)
WARM_SHARE = 0.25  # of the time, until memory is looked at first


class Report(msgspec.Struct, frozen=True):
    """Times are of pieces of text as clients got them, waiting in the queue included. Bad is anything but 0 in
    `errors` (a 5xx, a broken stream, nonsense that was not refused), `mismatches`, `rows_leaked`, `cut_at_stop`."""

    streams: int
    seconds: float
    tok_per_s: float
    ttft_p50_ms: float
    ttft_p95_ms: float
    inter_token_p50_ms: float
    inter_token_p95_ms: float
    errors: int
    mismatches: int
    rss_growth_share: float
    rss_mib: float
    completed: int
    left: int
    refused: int
    told_to_wait: int
    rows_leaked: int
    ended_at_stop: int
    cut_at_stop: int
    exit_status: int | None
    one_tok_per_s: float
    eight_tok_per_s: float
    eight_ratio: float
    eight_ttft_p50_ms: float
    threads: int
    peer: str | None = None
    peer_one_tok_per_s: float | None = None
    peer_eight_tok_per_s: float | None = None
    peer_eight_ttft_p50_ms: float | None = None
    ratio: float | None = None


class Pace(NamedTuple):
    """Tokens per second of one request alone and of eight at once, and the median time to a first piece."""

    one: float
    eight: float
    first_ms: float


def run(
    model: Path,
    streams: int = 64,
    seconds: float = 300.0,
    gguf: Path | None = None,
    note: Note = lambda line: None,
    key: Key = 0,
    num_tasks: int = 32,
    options: Sequence[str] = (),
) -> Report:
    """Load a server of MODEL for some seconds, stop it under load; before that, measure one and eight requests.

    Args:
        gguf: a model for llama.cpp to serve with eight slots on as many threads.
        num_tasks: different requests; what the model says to each is computed beforehand.
        options: more of `slm serve`'s.

    Raises:
        ValueError: a server did not start.
    """
    loaded, threads = models.load(model, "cpu", decode="auto"), torch.get_num_threads()
    tasks = [make_task(loaded, fold_in(key, i)) for i in range(num_tasks)]
    note(f"{len(tasks)} requests answered by the model itself")
    with served.slm(model, threads, ("--max-queue", str(max(streams, 8)), *options)) as server:
        pace = measure_pace(server, loaded, note)
        note(f"{streams} clients come for {seconds:g} s")
        heard, memory = asyncio.run(_storm(server, tasks, streams, seconds, key))
        leaked = asyncio.run(_active(server))
        last = asyncio.run(_stopped(server, tasks, streams))
        status = server.process.wait(served.STOP_SECONDS)
    report = _report(heard, memory, last, pace, seconds, note)
    peer: dict[str, Any] = {} if gguf is None else _peer(gguf, loaded, threads, pace, note)
    shape: dict[str, Any] = {"streams": streams, "seconds": seconds, "threads": threads}
    return Report(**report, **shape, rows_leaked=leaked, exit_status=status, **peer)


def make_task(model: Model, key: Key) -> Task:
    """A conversation of random words with settings, seed and length of its own, and what the model says to it."""
    room = model.config.context
    opening = _words(model, 7, room // 8)  # shared by all: the server may know it
    said = _words(model, key, 1 + fold_in(key, "length") % max(room // 8, 1))
    messages = [Message("system", opening), Message("user", said)] if key % 2 else [Message("user", said)]
    ids = talk.chat_ids(model, messages)
    if len(ids) > room // 2:  # a random text may cost more tokens than it was made of
        messages = [Message("user", said[:1])]
        ids = talk.chat_ids(model, messages)
    settings, seed = SETTINGS[fold_in(key, "settings") % len(SETTINGS)], fold_in(key, "seed") % (1 << 31)
    num = 1 + fold_in(key, "tokens") % max(min(64, room - len(ids) - 1), 1)
    shared = talk.shared(model, messages)
    pieces = list(talk.write(model, ids, talk.sampling(model, settings), seed, num, shared=shared))
    body = {
        "model": "served",
        "messages": [{"role": message.role, "content": message.content} for message in messages],
        "max_tokens": num,
        "seed": seed,
        **settings,
    }
    return Task(CHAT, body, "".join(piece.text for piece in pieces), pieces[-1].finish or "", pieces[-1].num_tokens)


def _words(model: Model, key: Key, num: int) -> str:
    return model.tokenizer.decode(_ids(model, key, num)) or "?"


def _ids(model: Model, key: Key, num: int) -> list[int]:
    specials = set(model.tokenizer.specials.values())
    plain = [i for i in range(model.tokenizer.vocab_size) if i not in specials]
    return [plain[fold_in(key, f"word {i}") % len(plain)] for i in range(num)]


def measure_pace(server: Served, model: Model, note: Note) -> Pace:
    """One request alone, then eight at once, of 64 ids each where the context has room; the best of two rounds."""
    length, new = min(64, model.config.context // 2), min(64, model.config.context // 2 - 1)
    bias = {str(i): -100 for i in model.stop_ids}

    def tasks(num: int, turn: int) -> list[Task]:
        prompts = [_ids(model, fold_in(turn, f"{num}/{i}"), length) for i in range(num)]
        told = {"model": server.name, "max_tokens": new, "temperature": 0.0, "logit_bias": bias}
        return [Task(COMPLETIONS, {**told, "prompt": prompt}) for prompt in prompts]

    def rate(found: tuple[list[Heard], float]) -> float:
        heard, seconds = found
        failed = next((one.error or "a stream without tokens" for one in heard if not one.num_tokens), "")
        if failed:
            raise ValueError(f"{server.name}: {failed}")
        return sum(one.num_tokens for one in heard) / seconds

    asyncio.run(load.together(server.url, tasks(8, 9)))  # a warm-up: compiles, pages
    ones, eights, firsts = [], [], list[float]()
    for turn in range(2):
        ones.append(rate(asyncio.run(load.together(server.url, tasks(1, turn)))))
        found = asyncio.run(load.together(server.url, tasks(8, turn)))
        eights.append(rate(found))
        firsts += [one.times[0] for one in found[0] if one.times]
    pace = Pace(max(ones), max(eights), 1000 * statistics.median(firsts or [0.0]))
    note(f"{server.name}: one {pace.one:.0f} tok/s, eight {pace.eight:.0f} tok/s, first {pace.first_ms:.0f} ms")
    return pace


async def _storm(
    server: Served, tasks: Sequence[Task], streams: int, seconds: float, key: Key
) -> tuple[list[tuple[Task, Heard]], list[int]]:
    """What all visitors heard, and the server's memory once a while."""
    heard: list[tuple[Task, Heard]] = []
    begun, sizes = time.monotonic(), list[tuple[float, int]]()

    async def watch() -> None:
        while True:
            await asyncio.sleep(min(1.0, seconds / 40))
            size = await asyncio.to_thread(served.resident, server.process.pid)
            sizes.append((time.monotonic() - begun, size))

    watching = asyncio.create_task(watch())
    await load.storm(server.url, tasks, streams, seconds, key, lambda task, one: heard.append((task, one)))
    watching.cancel()
    return heard, [size for at, size in sizes if at >= WARM_SHARE * seconds]


async def _active(server: Served) -> int:
    """Rows that are still taken when nobody is there any more; they have some seconds to notice."""
    async with load.client(server.url) as usual:
        active = 0
        for _ in range(100):
            active = (await usual.get("/health")).json()["active"]
            if not active:
                break
            await asyncio.sleep(0.1)
        return active


async def _stopped(server: Served, tasks: Sequence[Task], streams: int) -> list[tuple[Task, Heard]]:
    """All streams at once, and the server is told to stop in their middle."""
    asked = [tasks[i % len(tasks)] for i in range(streams)]
    key = next(i for i in range(1 << 20) if load.kind_of(i) == "polite")
    async with load.client(server.url) as usual:
        under_way = [asyncio.create_task(load.visit((usual, usual), task, key)) for task in asked]
        await asyncio.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        return list(zip(asked, await asyncio.gather(*under_way), strict=True))


def _report(
    heard: Sequence[tuple[Task, Heard]],
    memory: Sequence[int],
    last: Sequence[tuple[Task, Heard]],
    pace: Pace,
    seconds: float,
    note: Note,
) -> dict[str, Any]:
    """The figures of all that was heard; what was wrong is told to `note`, the most frequent first."""
    talks = [(task, one) for task, one in heard if one.kind in ("polite", "leaving", "slow")]
    answered = [(task, one) for task, one in talks if one.status == 200]
    failed = [one for _, one in talks if (one.error and one.status != 429) or one.status not in (200, 429)]
    nonsense = [one for _, one in heard if one.kind in ("oversized", "malformed", "half")]
    failed += [one for one in nonsense if not 400 <= one.status < 500]
    mismatches = [line for task, one in answered if not one.error and (line := load.wrong(task, one))]
    accepted = [(task, one) for task, one in last if one.status == 200]
    cut = [line for task, one in accepted if (line := load.wrong(task, one))]
    for kind, lines in (("error", [f"{one.kind} {one.status} {one.error}" for one in failed]), ("", mismatches + cut)):
        for line, times in Counter(lines).most_common(5):
            note(f"{times} times: {kind} {line[:400]}")
    quick = [one for _, one in answered if one.kind != "slow"]
    firsts = [one.times[0] for one in quick if one.times]
    gaps = [b - a for one in quick for a, b in zip(one.times, one.times[1:], strict=False)]
    num_tokens = sum(one.num_tokens or len(one.times) for _, one in answered)
    edge = max(len(memory) // 5, 1)
    before, after = (statistics.median(part or [1]) for part in (memory[:edge], memory[-edge:]))
    return {
        "tok_per_s": num_tokens / seconds,
        "ttft_p50_ms": _quantile(firsts, 0.5),
        "ttft_p95_ms": _quantile(firsts, 0.95),
        "inter_token_p50_ms": _quantile(gaps, 0.5),
        "inter_token_p95_ms": _quantile(gaps, 0.95),
        "errors": len(failed),
        "mismatches": len(mismatches),
        "rss_growth_share": after / before - 1,
        "rss_mib": after / (1 << 20),
        "completed": sum(one.done for _, one in answered),
        "left": sum(not one.done for _, one in answered),
        "refused": len(nonsense),
        "told_to_wait": sum(one.status == 429 for _, one in talks),
        "ended_at_stop": len(accepted) - len(cut),
        "cut_at_stop": len(cut),
        "one_tok_per_s": pace.one,
        "eight_tok_per_s": pace.eight,
        "eight_ratio": pace.eight / pace.one,
        "eight_ttft_p50_ms": pace.first_ms,
    }


def _quantile(seconds: Sequence[float], share: float) -> float:
    """In milliseconds; 0 of nothing."""
    ordered = sorted(seconds)
    return 1000 * ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def _peer(gguf: Path, model: Model, threads: int, pace: Pace, note: Note) -> dict[str, Any]:
    with served.llama_cpp(gguf, 8, threads, min(model.config.context, 1024)) as server:
        theirs = measure_pace(server, model, note)
    return {
        "peer": "llama.cpp",
        "peer_one_tok_per_s": theirs.one,
        "peer_eight_tok_per_s": theirs.eight,
        "peer_eight_ttft_p50_ms": theirs.first_ms,
        "ratio": pace.eight / theirs.eight,
    }
