"""The report of `slm bench serve`: speed, latency, memory and the outcome of the checks.

Invariant: a healthy server has 0 in `errors`, `mismatches`, `slots_leaked` and `cut_at_stop`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec

from slm_fn.bench.serve.checks import LoadChecks
from slm_fn.bench.serve.clients import ClientResult, Exchange
from slm_fn.bench.serve.speed import ServerSpeed

JSON_KEYS = {
    "disconnected": "left",
    "invalid_requests": "refused",
    "rate_limited": "told_to_wait",
    "slots_leaked": "rows_leaked",
    "completed_at_stop": "ended_at_stop",
    "single_tok_per_s": "one_tok_per_s",
    "batch8_tok_per_s": "eight_tok_per_s",
    "batch8_speedup": "eight_ratio",
    "batch8_ttft_p50_ms": "eight_ttft_p50_ms",
    "peer_single_tok_per_s": "peer_one_tok_per_s",
    "peer_batch8_tok_per_s": "peer_eight_tok_per_s",
    "peer_batch8_ttft_p50_ms": "peer_eight_ttft_p50_ms",
}
"""Keys of the JSON report that differ from the names of the fields."""


class LoadMeasurements(NamedTuple):
    """What a load test measured.

    Attributes:
        num_streams: clients at a time.
        seconds: duration of the load.
        threads: CPU threads of the server.
        speed: of the server before the load.
        exchanges: all requests of the load and what their clients received.
        memory_bytes: resident memory of the server over time, after its warm-up.
        slots_leaked: slots that were still active after all clients had gone.
        at_stop: the exchanges that were in flight when the server was stopped.
        exit_status: of the server.
        peer_speed: of llama.cpp; None if it was not measured.
    """

    num_streams: int
    seconds: float
    threads: int
    speed: ServerSpeed
    exchanges: list[Exchange]
    memory_bytes: list[int]
    slots_leaked: int
    at_stop: list[Exchange]
    exit_status: int
    peer_speed: ServerSpeed | None = None


class ServeReport(msgspec.Struct, frozen=True, kw_only=True, rename=JSON_KEYS):
    """The figures of a load test.

    Times are of text deltas as clients received them, waiting in the queue included. `errors`
    counts statuses of 5xx, broken streams, and invalid requests that were not rejected.
    """

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
    disconnected: int
    invalid_requests: int
    rate_limited: int
    slots_leaked: int
    completed_at_stop: int
    cut_at_stop: int
    exit_status: int | None
    single_tok_per_s: float
    batch8_tok_per_s: float
    batch8_speedup: float
    batch8_ttft_p50_ms: float
    threads: int
    peer: str | None = None
    peer_single_tok_per_s: float | None = None
    peer_batch8_tok_per_s: float | None = None
    peer_batch8_ttft_p50_ms: float | None = None
    ratio: float | None = None


def make_report(measured: LoadMeasurements, checks: LoadChecks) -> ServeReport:
    """Returns the report of a load test.

    Args:
        measured: what was measured.
        checks: the checks of its exchanges.
    """
    answered = checks.answered
    # A slow reader's times are its own, not the server's.
    timed = [result for result in answered if result.kind != "slow"]
    first_seconds = [result.delta_seconds[0] for result in timed if result.delta_seconds]
    gap_seconds = _gaps_between_deltas(timed)
    num_tokens = sum(result.num_tokens or len(result.delta_seconds) for result in answered)
    num_completed = sum(result.is_done for result in answered)
    memory_before, memory_after = _memory_at_both_ends(measured.memory_bytes)
    speed = measured.speed
    report = ServeReport(
        streams=measured.num_streams,
        seconds=measured.seconds,
        tok_per_s=num_tokens / measured.seconds,
        ttft_p50_ms=_quantile_ms(first_seconds, 0.5),
        ttft_p95_ms=_quantile_ms(first_seconds, 0.95),
        inter_token_p50_ms=_quantile_ms(gap_seconds, 0.5),
        inter_token_p95_ms=_quantile_ms(gap_seconds, 0.95),
        errors=len(checks.errors),
        mismatches=len(checks.mismatches),
        rss_growth_share=memory_after / memory_before - 1,
        rss_mib=memory_after / (1 << 20),
        completed=num_completed,
        disconnected=len(answered) - num_completed,
        invalid_requests=checks.num_invalid,
        rate_limited=checks.num_rate_limited,
        slots_leaked=measured.slots_leaked,
        completed_at_stop=checks.num_accepted_at_stop - len(checks.cut_at_stop),
        cut_at_stop=len(checks.cut_at_stop),
        exit_status=measured.exit_status,
        single_tok_per_s=speed.single_tok_per_s,
        batch8_tok_per_s=speed.batch8_tok_per_s,
        batch8_speedup=speed.batch8_tok_per_s / speed.single_tok_per_s,
        batch8_ttft_p50_ms=speed.batch8_ttft_ms,
        threads=measured.threads,
    )
    return _with_peer(report, measured.peer_speed) if measured.peer_speed else report


def rows(report: ServeReport) -> list[list[Any]]:
    """Returns the figures of a report as the rows of a table: name and value."""
    table: list[list[Any]] = []
    for name, value in msgspec.structs.asdict(report).items():
        if value is not None:
            table.append([name, round(value, 3) if isinstance(value, float) else value])
    return table


def _with_peer(report: ServeReport, speed: ServerSpeed) -> ServeReport:
    return msgspec.structs.replace(
        report,
        peer="llama.cpp",
        peer_single_tok_per_s=speed.single_tok_per_s,
        peer_batch8_tok_per_s=speed.batch8_tok_per_s,
        peer_batch8_ttft_p50_ms=speed.batch8_ttft_ms,
        ratio=report.batch8_tok_per_s / speed.batch8_tok_per_s,
    )


def _gaps_between_deltas(results: Sequence[ClientResult]) -> list[float]:
    gaps: list[float] = []
    for result in results:
        seconds = result.delta_seconds
        gaps += [later - earlier for earlier, later in pairwise(seconds)]
    return gaps


def _memory_at_both_ends(memory_bytes: Sequence[int]) -> tuple[float, float]:
    """Returns the medians of the first and of the last fifth; 1 if there is no sample."""
    samples = memory_bytes or [1]
    num_samples = max(len(samples) // 5, 1)
    return statistics.median(samples[:num_samples]), statistics.median(samples[-num_samples:])


def _quantile_ms(seconds: Sequence[float], share: float) -> float:
    """Returns a quantile in milliseconds; 0 if there is no sample."""
    if not seconds:
        return 0.0
    index = min(int(share * len(seconds)), len(seconds) - 1)
    return 1000 * sorted(seconds)[index]
