"""The report of `slm bench train`: medians over rounds, and ratios to the peers.

Invariant: a ratio is the median of ratios within one round.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import msgspec
import torch

from slm_fn.bench.train.timing import StepTiming, StepWorkload
from slm_fn.config import Config
from slm_fn.core import device as devices
from slm_fn.nn import gpt
from slm_fn.pipeline.planning.roofline import matmul_side

OWN_NAME = "slm"
"""The name of slm's own training among the timings."""


class TrainPeerReport(msgspec.Struct, frozen=True):
    """The medians of one peer; `ratio` is slm's speed over the peer's."""

    name: str
    tok_per_s: float
    peak_memory_mib: float
    compile_s: float
    loss: float
    ratio: float


class TrainReport(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Medians over rounds.

    `peer` is the fastest peer. Memory is that of the process on a CPU, else what the device held.
    """

    tok_per_s: float
    flop_per_s: float
    matmul_flop_per_s: float
    matmul_share: float
    matmul_shape: str
    peak_memory_mib: float
    compile_s: float
    data_stall_share: float
    first_loss: float
    loss: float
    params: int
    precision: str
    engine: str
    device: str
    device_name: str
    threads: int
    batch_size: int
    context: int
    steps: int
    repeat: int
    torch: str
    peer: str | None = None
    peer_tok_per_s: float | None = None
    peer_peak_memory_mib: float | None = None
    ratio: float | None = None
    peers: list[TrainPeerReport] | None = None


def make_report(
    config: Config, workload: StepWorkload, timings: Mapping[str, Sequence[StepTiming]]
) -> TrainReport:
    """Returns the report of all rounds.

    Args:
        config: the config that was measured.
        workload: what every trainer was measured on.
        timings: one timing per round, by trainer; slm's own under `OWN_NAME`.
    """
    device = torch.device(workload.device)
    settings = config.pretrain.train
    dtype = devices.resolve_dtype(settings.precision, device)
    own = timings[OWN_NAME]
    tok_per_s = _median(own, "tok_per_s")
    flop_per_token = gpt.train_flops_per_token(config.model, workload.context)
    side = matmul_side(device)
    report = TrainReport(
        tok_per_s=tok_per_s,
        flop_per_s=tok_per_s * flop_per_token,
        matmul_flop_per_s=_median(own, "matmul_flop_per_s"),
        matmul_share=_median_matmul_share(own, flop_per_token),
        matmul_shape=f"{side} x {side} x {side}",
        peak_memory_mib=_median(own, "peak_memory_mib"),
        compile_s=_median(own, "compile_s"),
        data_stall_share=_median(own, "data_stall_share"),
        first_loss=_median(own, "first_loss"),
        loss=_median(own, "last_loss"),
        params=gpt.count_params(config.model),
        precision=str(dtype).removeprefix("torch."),
        engine=own[0].engine,
        device=str(device),
        device_name=devices.device_name(device),
        threads=devices.set_num_threads(settings.num_threads),
        batch_size=workload.batch_size,
        context=workload.context,
        steps=workload.num_steps,
        repeat=len(own),
        torch=str(torch.__version__),
    )
    peers = [
        _make_peer_report(name, own, peer_timings)
        for name, peer_timings in timings.items()
        if name != OWN_NAME
    ]
    return _with_peers(report, peers) if peers else report


def rows(report: TrainReport) -> list[list[str]]:
    """Returns the report as the rows of a table: label and value."""
    matmul_rate = f"{report.matmul_flop_per_s / 1e9:,.0f}"
    matmul_share = f"{report.matmul_share:.0%} of {matmul_rate}, its rate at {report.matmul_shape}"
    losses = f"{report.first_loss:.3f} to {report.loss:.3f}"
    model = f"{report.params:,} parameters, batch {report.batch_size} x {report.context}"
    setup = f"{report.precision}, {report.engine}, {report.device}, {report.threads} threads"
    rounds = f"median of {report.repeat} rounds of {report.steps} steps, torch {report.torch}"
    return [
        ["speed", f"{report.tok_per_s:,.0f} tokens/s"],
        ["compute", f"{report.flop_per_s / 1e9:,.0f} GFLOP/s"],
        ["share of matmul rate", matmul_share],
        ["peak memory", f"{report.peak_memory_mib:,.0f} MiB"],
        ["first step", f"{report.compile_s:.1f} s longer than the others"],
        ["waiting for data", f"{report.data_stall_share:.1%}"],
        ["loss", losses],
        ["model", model],
        ["setup", setup],
        ["measured", rounds],
    ]


PEER_COLUMNS = ("peer", "tok/s", "MiB", "compile s", "loss", "slm is")


def peer_rows(report: TrainReport) -> list[list[str]]:
    """Returns the peers as the rows of a table with `PEER_COLUMNS`."""
    return [
        [
            peer.name,
            f"{peer.tok_per_s:,.0f}",
            f"{peer.peak_memory_mib:,.0f}",
            f"{peer.compile_s:.1f}",
            f"{peer.loss:.3f}",
            f"{peer.ratio:.2f} x",
        ]
        for peer in report.peers or []
    ]


def _median(timings: Sequence[StepTiming], field: str) -> float:
    values: list[float] = [getattr(timing, field) for timing in timings]
    return statistics.median(values)


def _median_matmul_share(timings: Sequence[StepTiming], flop_per_token: float) -> float:
    return statistics.median(
        timing.tok_per_s * flop_per_token / timing.matmul_flop_per_s for timing in timings
    )


def _make_peer_report(
    name: str, own: Sequence[StepTiming], peer: Sequence[StepTiming]
) -> TrainPeerReport:
    rounds = zip(own, peer, strict=True)
    ratio = statistics.median(
        own_timing.tok_per_s / peer_timing.tok_per_s for own_timing, peer_timing in rounds
    )
    return TrainPeerReport(
        name=name,
        tok_per_s=_median(peer, "tok_per_s"),
        peak_memory_mib=_median(peer, "peak_memory_mib"),
        compile_s=_median(peer, "compile_s"),
        loss=_median(peer, "last_loss"),
        ratio=ratio,
    )


def _with_peers(report: TrainReport, peers: list[TrainPeerReport]) -> TrainReport:
    fastest = max(peers, key=lambda peer: peer.tok_per_s)
    return msgspec.structs.replace(
        report,
        peer=fastest.name,
        peer_tok_per_s=fastest.tok_per_s,
        peer_peak_memory_mib=fastest.peak_memory_mib,
        ratio=fastest.ratio,
        peers=peers,
    )
