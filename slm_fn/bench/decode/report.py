"""The report of `slm bench decode`: medians over rounds, shares of the read rate, ratios to peers.

Invariant: a share or a ratio is the median of those within one round.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import msgspec
import torch

from slm_fn.bench.decode.timing import DecodeRun, DecodeWorkload
from slm_fn.core import device as devices
from slm_fn.nn import gpt
from slm_fn.nn.gpt import ModelConfig

PRECISIONS = ("bf16", "int8", "int4")
"""The names of slm's own runs: the precision of the weights."""
Runs = Mapping[str, Sequence[DecodeRun]]
"""The rounds of each implementation, by name."""


class DecodePeerReport(msgspec.Struct, frozen=True):
    """The medians of one peer.

    Ratios are slm's speed over the peer's: bf16 and int8 for one request, the others in bf16.
    """

    name: str
    tok_per_s: float
    prefill_tok_per_s: float
    batch8_tok_per_s: float
    first_token_p50_ms: float
    bf16_ratio: float
    int8_ratio: float
    prefill_ratio: float
    batch8_ratio: float


class DecodeReport(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Medians over rounds.

    A bandwidth share is the bytes of weights per token times tokens per second, over the rate of
    reading memory. `prefill`, `batch8` and `first_token` are in bf16; those of int8 and int4 carry
    their prefix. First tokens are those of 8 requests that start at once. A speedup is the rate of
    8 requests over that of one, prompts included in both.
    """

    read_gb_per_s: float
    bf16_tok_per_s: float
    bf16_bandwidth_share: float
    int8_tok_per_s: float
    int8_bandwidth_share: float
    int4_tok_per_s: float
    int4_bandwidth_share: float
    prefill_tok_per_s: float
    int8_prefill_tok_per_s: float
    batch8_tok_per_s: float
    int8_batch8_tok_per_s: float
    int4_batch8_tok_per_s: float
    batch8_speedup: float
    int8_batch8_speedup: float
    first_token_p50_ms: float
    int8_first_token_p50_ms: float
    engine: str
    params: int
    device: str
    device_name: str
    threads: int
    prompt_tokens: int
    new_tokens: int
    repeat: int
    torch: str
    peers: list[DecodePeerReport] | None = None


def make_report(
    config: ModelConfig, workload: DecodeWorkload, runs: Runs, repeat: int
) -> DecodeReport:
    """Returns the report of all rounds.

    Args:
        config: the shape of the model.
        workload: what every implementation was measured on.
        runs: those of `PRECISIONS`, and those of the peers.
        repeat: number of rounds.
    """
    device = torch.device(workload.device)
    own = [run for precision in PRECISIONS for run in runs[precision]]
    peers = [_make_peer_report(name, runs) for name in runs if name not in PRECISIONS]
    bf16, int8, int4 = (runs[precision] for precision in PRECISIONS)
    return DecodeReport(
        read_gb_per_s=statistics.median(run.read_bytes_per_s for run in own) / 1e9,
        bf16_tok_per_s=_median(bf16, "tok_per_s"),
        bf16_bandwidth_share=_median_bandwidth_share(bf16),
        int8_tok_per_s=_median(int8, "tok_per_s"),
        int8_bandwidth_share=_median_bandwidth_share(int8),
        int4_tok_per_s=_median(int4, "tok_per_s"),
        int4_bandwidth_share=_median_bandwidth_share(int4),
        prefill_tok_per_s=_median(bf16, "prefill_tok_per_s"),
        int8_prefill_tok_per_s=_median(int8, "prefill_tok_per_s"),
        batch8_tok_per_s=_median(bf16, "batch8_tok_per_s"),
        int8_batch8_tok_per_s=_median(int8, "batch8_tok_per_s"),
        int4_batch8_tok_per_s=_median(int4, "batch8_tok_per_s"),
        batch8_speedup=_median_batch_speedup(bf16),
        int8_batch8_speedup=_median_batch_speedup(int8),
        first_token_p50_ms=_median(bf16, "first_token_p50_ms"),
        int8_first_token_p50_ms=_median(int8, "first_token_p50_ms"),
        engine=own[0].engine,
        params=gpt.count_params(config),
        device=str(device),
        device_name=devices.device_name(device),
        threads=workload.threads,
        prompt_tokens=workload.prompt_tokens,
        new_tokens=workload.new_tokens,
        repeat=repeat,
        torch=str(torch.__version__),
        peers=peers or None,
    )


def rows(report: DecodeReport) -> list[list[str]]:
    """Returns the report as the rows of a table: label and value."""

    def speed(tok_per_s: float, bandwidth_share: float) -> str:
        return f"{tok_per_s:,.0f} tokens/s, {bandwidth_share:.0%} of the limit by memory bandwidth"

    batch_bf16 = f"bf16 {report.batch8_tok_per_s:,.0f}"
    batch_int8 = f"int8 {report.int8_batch8_tok_per_s:,.0f} tokens/s in total"
    prefill_bf16 = f"bf16 {report.prefill_tok_per_s:,.0f}"
    prefill_int8 = f"int8 {report.int8_prefill_tok_per_s:,.0f} tokens/s"
    first_bf16 = f"bf16 {report.first_token_p50_ms:,.0f} ms"
    first_int8 = f"int8 {report.int8_first_token_p50_ms:,.0f} ms"
    setup = f"{report.engine}, {report.device}, {report.threads} threads"
    return [
        ["memory", f"{report.read_gb_per_s:.1f} GB/s read"],
        ["bf16", speed(report.bf16_tok_per_s, report.bf16_bandwidth_share)],
        ["int8", speed(report.int8_tok_per_s, report.int8_bandwidth_share)],
        ["int4", speed(report.int4_tok_per_s, report.int4_bandwidth_share)],
        ["8 at once", f"{batch_bf16}, {batch_int8}"],
        ["prefill", f"{prefill_bf16}, {prefill_int8}"],
        ["first token", f"{first_bf16}, {first_int8}"],
        ["setup", f"{setup}, {report.params:,} parameters"],
        ["measured", f"median of {report.repeat} rounds, torch {report.torch}"],
    ]


PEER_COLUMNS = ("peer", "tok/s", "8 at once", "prefill", "first ms", "bf16 is", "int8 is")


def peer_rows(report: DecodeReport) -> list[list[str]]:
    """Returns the peers as the rows of a table with `PEER_COLUMNS`."""
    return [
        [
            peer.name,
            f"{peer.tok_per_s:,.0f}",
            f"{peer.batch8_tok_per_s:,.0f}",
            f"{peer.prefill_tok_per_s:,.0f}",
            f"{peer.first_token_p50_ms:,.0f}",
            f"{peer.bf16_ratio:.2f} x",
            f"{peer.int8_ratio:.2f} x",
        ]
        for peer in report.peers or []
    ]


def _median(runs: Sequence[DecodeRun], field: str) -> float:
    values: list[float] = [getattr(run.timing, field) for run in runs]
    return statistics.median(values)


def _median_bandwidth_share(runs: Sequence[DecodeRun]) -> float:
    return statistics.median(
        run.timing.tok_per_s * run.bytes_per_token / run.read_bytes_per_s for run in runs
    )


def _median_batch_speedup(runs: Sequence[DecodeRun]) -> float:
    return statistics.median(
        run.timing.batch8_tok_per_s / run.timing.request_tok_per_s for run in runs
    )


def _make_peer_report(name: str, runs: Runs) -> DecodePeerReport:
    peer = runs[name]

    def median_ratio(precision: str, field: str) -> float:
        rounds = zip(runs[precision], peer, strict=True)
        ratios: list[float] = [
            getattr(own_run.timing, field) / getattr(peer_run.timing, field)
            for own_run, peer_run in rounds
        ]
        return statistics.median(ratios)

    return DecodePeerReport(
        name=name,
        tok_per_s=_median(peer, "tok_per_s"),
        prefill_tok_per_s=_median(peer, "prefill_tok_per_s"),
        batch8_tok_per_s=_median(peer, "batch8_tok_per_s"),
        first_token_p50_ms=_median(peer, "first_token_p50_ms"),
        bf16_ratio=median_ratio("bf16", "tok_per_s"),
        int8_ratio=median_ratio("int8", "tok_per_s"),
        prefill_ratio=median_ratio("bf16", "prefill_tok_per_s"),
        batch8_ratio=median_ratio("bf16", "batch8_tok_per_s"),
    )
