"""Speed of a server: one request alone, and eight at once.

Invariant: every server gets requests of the same lengths, after the same warm-up.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from slm_fn.bench.rounds import Note
from slm_fn.bench.serve import clients
from slm_fn.bench.serve.clients import ClientResult, LoadRequest
from slm_fn.bench.serve.process import ServerAddress
from slm_fn.bench.serve.requests import make_completion_request, random_ids
from slm_fn.core.random import fold_in
from slm_fn.pipeline.model_folder import Model

BATCH_SIZE = 8
NUM_ROUNDS = 2
WARMUP_ROUND = 9
"""Draws other prompts than those of the measured rounds."""
MAX_TOKENS = 64
"""Of a prompt, and of its reply; fewer where the context is short."""


class ServerSpeed(NamedTuple):
    """The best of two rounds.

    Attributes:
        single_tok_per_s: tokens per second of one request alone.
        batch8_tok_per_s: of eight requests at once, in total.
        batch8_ttft_ms: median time to the first token of those eight.
    """

    single_tok_per_s: float
    batch8_tok_per_s: float
    batch8_ttft_ms: float


def measure_speed(server: ServerAddress, model: Model, note: Note) -> ServerSpeed:
    """Measures the speed of a running server.

    Args:
        server: the server.
        model: the model that it serves, or one with the same tokenizer.
        note: gets a line with the result.

    Raises:
        ValueError: a request failed.
    """
    asyncio.run(
        clients.run_together(server.url, _requests(server, model, BATCH_SIZE, WARMUP_ROUND))
    )
    single_rates: list[float] = []
    batch_rates: list[float] = []
    first_seconds: list[float] = []
    for round_number in range(NUM_ROUNDS):
        single, single_seconds = asyncio.run(
            clients.run_together(server.url, _requests(server, model, 1, round_number))
        )
        single_rates.append(_tok_per_s(server, single, single_seconds))
        batch, batch_seconds = asyncio.run(
            clients.run_together(server.url, _requests(server, model, BATCH_SIZE, round_number))
        )
        batch_rates.append(_tok_per_s(server, batch, batch_seconds))
        first_seconds += [result.delta_seconds[0] for result in batch if result.delta_seconds]
    ttft_ms = 1000 * statistics.median(first_seconds or [0.0])
    speed = ServerSpeed(max(single_rates), max(batch_rates), ttft_ms)
    note(_describe(server, speed))
    return speed


def _requests(
    server: ServerAddress, model: Model, num_requests: int, round_number: int
) -> list[LoadRequest]:
    half_context = model.config.context // 2
    prompt_tokens = min(MAX_TOKENS, half_context)
    new_tokens = min(MAX_TOKENS, half_context - 1)
    requests = []
    for index in range(num_requests):
        key = fold_in(round_number, f"{num_requests}/{index}")
        prompt_ids = random_ids(model, key, prompt_tokens)
        requests.append(make_completion_request(model, server.model_name, prompt_ids, new_tokens))
    return requests


def _tok_per_s(server: ServerAddress, results: Sequence[ClientResult], seconds: float) -> float:
    for result in results:
        if not result.num_tokens:
            reason = result.error or "a stream without tokens"
            raise ValueError(f"{server.model_name}: {reason}")
    return sum(result.num_tokens for result in results) / seconds


def _describe(server: ServerAddress, speed: ServerSpeed) -> str:
    single = f"one {speed.single_tok_per_s:.0f} tok/s"
    batch = f"eight {speed.batch8_tok_per_s:.0f} tok/s"
    return f"{server.model_name}: {single}, {batch}, first token {speed.batch8_ttft_ms:.0f} ms"
