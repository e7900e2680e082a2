"""How fast a model trains here, beside this machine's own matmul rate and beside peers in the same run.

Invariant: what is measured is the step that `slm pretrain` takes, and its loss is told, so that it is seen to learn.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import torch

from slm_fn import config as configs
from slm_fn.bench import peers
from slm_fn.bench.measure import Call, rounds
from slm_fn.bench.pace import Pace, Work, pace, tokens_at
from slm_fn.bench.peers import Peer, Size
from slm_fn.config import Config, PretrainConfig
from slm_fn.core import device as devices
from slm_fn.core import random, tree
from slm_fn.core.types import LMBatch
from slm_fn.data import stream
from slm_fn.loss.lm import next_token
from slm_fn.nn import gpt
from slm_fn.nn.gpt import ModelConfig
from slm_fn.optim.recipes import OptimConfig
from slm_fn.pipeline.budget import with_vocabulary
from slm_fn.pipeline.limits import matmul_rate, matmul_side
from slm_fn.pipeline.ranks import Ranks
from slm_fn.pipeline.step import plan
from slm_fn.train.loop import TrainConfig

SHAPE = ModelConfig(
    vocab_size=8192, dim=384, num_layers=6, num_heads=6, num_kv_heads=6, ffn_dim=1024, context=256, tied=True
)
"""13.8M parameters: what is measured where no config is named."""
DEFAULT = Config(
    model=SHAPE,
    pretrain=PretrainConfig(optim=OptimConfig(schedule="constant", warmup_steps=0), train=TrainConfig(batch_size=8)),
)


class PeerReport(msgspec.Struct, frozen=True):
    """One peer; `ratio` is how many times as fast as it we are."""

    name: str
    tok_per_s: float
    peak_memory_mib: float
    compile_s: float
    loss: float
    ratio: float


class Report(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Medians over rounds. `peer` is the fastest one; memory is the whole process's, or what the device held."""

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
    peers: list[PeerReport] | None = None


def run(
    config: Config = DEFAULT,
    device: str = "auto",
    steps: int = 5,
    repeat: int = 5,
    others: Sequence[Peer] = (),
    note: Callable[[str], None] = lambda line: None,
) -> Report:
    """Train the model of a config on random tokens for some steps, in turn with the peers, several times.

    Args:
        steps: timed in each round, after a few that are not.
        others: who else trains (`lineup`).
        note: told a line after every run.
    """
    place, settings = devices.resolve(device), config.pretrain.train
    shape = gpt.check(config.model)
    work = Work(shape.vocab_size, settings.batch_size, shape.context, steps, str(place))
    size = Size(shape.dim, shape.num_layers, shape.num_heads, shape.num_kv_heads, shape.ffn_dim, shape.tied)
    calls: dict[str, Call] = {"slm": (contestant, (config, work))}
    calls |= {peer.name: (peers.run, (peer, size, work)) for peer in others}
    paces = rounds(calls, repeat, note, _told)
    return _report(config, work, paces)


def contestant(config: Config, work: Work) -> Pace:
    """Train in this process by the sentence that every stage trains by, and say how fast."""
    place, settings = torch.device(work.device), config.pretrain.train
    devices.set_threads(settings.num_threads)
    dtype = devices.dtype_of(settings.precision, place)
    before = matmul_rate(place, dtype)
    how = plan(config.model, next_token, config.pretrain.optim, settings, Ranks(place))
    state = how.begin(tree.to_device(gpt.init(config.model, random.fold_in(settings.seed, "init")), place))
    take = how.step

    def step(batch: LMBatch) -> torch.Tensor:
        nonlocal state
        state, metrics = take(state, batch)
        return metrics["loss"]

    def batch_at(position: int) -> LMBatch:
        return tree.to_device(stream.as_batch(tokens_at(work, position)), place)

    batches = stream.prefetch(batch_at, 0, work.warmup + work.steps)
    found = pace(step, batches, work)
    limit = statistics.mean([before, matmul_rate(place, dtype)])
    return found._replace(matmul_flop_per_s=limit, engine=how.engine)


def _told(found: Pace) -> str:
    return f"{found.tok_per_s:,.0f} tok/s, {found.peak_memory_mib:,.0f} MiB, loss {found.loss:.3f}"


def _report(config: Config, work: Work, paces: dict[str, list[Pace]]) -> Report:
    place, own = torch.device(work.device), paces["slm"]

    def median(runs: Sequence[Pace], field: str) -> float:
        return statistics.median(getattr(run, field) for run in runs)

    per_token = gpt.flops(config.model, work.context)
    beside = [
        PeerReport(
            name=name,
            tok_per_s=median(runs, "tok_per_s"),
            peak_memory_mib=median(runs, "peak_memory_mib"),
            compile_s=median(runs, "compile_s"),
            loss=median(runs, "loss"),
            ratio=statistics.median(a.tok_per_s / b.tok_per_s for a, b in zip(own, runs, strict=True)),
        )
        for name, runs in paces.items()
        if name != "slm"
    ]
    best = max(beside, key=lambda peer: peer.tok_per_s, default=None)
    side = matmul_side(place)
    told: dict[str, Any] = (
        {}
        if best is None
        else {
            "peer": best.name,
            "peer_tok_per_s": best.tok_per_s,
            "peer_peak_memory_mib": best.peak_memory_mib,
            "ratio": best.ratio,
            "peers": beside,
        }
    )
    return Report(
        tok_per_s=median(own, "tok_per_s"),
        flop_per_s=median(own, "tok_per_s") * per_token,
        matmul_flop_per_s=median(own, "matmul_flop_per_s"),
        matmul_share=statistics.median(run.tok_per_s * per_token / run.matmul_flop_per_s for run in own),
        matmul_shape=f"{side} x {side} x {side}",
        peak_memory_mib=median(own, "peak_memory_mib"),
        compile_s=median(own, "compile_s"),
        data_stall_share=median(own, "stall_share"),
        first_loss=median(own, "first_loss"),
        loss=median(own, "loss"),
        params=gpt.count(config.model),
        precision=str(devices.dtype_of(config.pretrain.train.precision, place)).removeprefix("torch."),
        engine=own[0].engine,
        device=str(place),
        device_name=devices.name_of(place),
        threads=devices.set_threads(config.pretrain.train.num_threads),
        batch_size=work.batch_size,
        context=work.context,
        steps=work.steps,
        repeat=len(own),
        torch=str(torch.__version__),
        **told,
    )


def choose(
    name: str | None,
    overrides: Sequence[str] = (),
    engine: str | None = None,
    precision: str | None = None,
    batch_size: int | None = None,
    context: int | None = None,
) -> Config:
    """The config to measure: a file or preset, or the default, with what the flags say put in its place.

    A road without a vocabulary takes that of its tokenizer's config.

    Raises:
        ValueError: a value that does not fit.

    Example:
        >>> choose("tiny", context=64).model.context
        64
    """
    flags = {
        "pretrain.train.engine": engine,
        "pretrain.train.precision": precision,
        "pretrain.train.batch_size": batch_size,
        "model.context": context,
    }
    items = [*overrides, *(f"{key}={value}" for key, value in flags.items() if value is not None)]
    if name is None:
        base = msgspec.to_builtins(DEFAULT)
        return configs.convert(configs.override(base, items), "slm bench train", Config)
    return with_vocabulary(configs.load(name, items))


def lineup(
    config: Config, device: str, kind: str | None, precision: str = "", compiled: bool | None = None
) -> list[Peer]:
    """The peers that flags mean, in the precision we train in where the flags leave it open."""
    dtype = devices.dtype_of(config.pretrain.train.precision, devices.resolve(device))
    native = "bfloat16" if dtype == torch.bfloat16 else "float32"
    return peers.lineup(kind, precision, compiled, native) if kind else []


def rows(report: Report) -> list[list[str]]:
    """The report as lines for people."""
    share = f"{report.matmul_share:.0%} of {report.matmul_flop_per_s / 1e9:,.0f}, its rate at {report.matmul_shape}"
    return [
        ["speed", f"{report.tok_per_s:,.0f} tokens/s"],
        ["arithmetic", f"{report.flop_per_s / 1e9:,.0f} GFLOP/s"],
        ["of the machine", share],
        ["peak memory", f"{report.peak_memory_mib:,.0f} MiB"],
        ["first step", f"{report.compile_s:.1f} s longer than the others"],
        ["waiting for data", f"{report.data_stall_share:.1%}"],
        ["loss", f"{report.first_loss:.3f} to {report.loss:.3f}"],
        ["model", f"{report.params:,} parameters, batch {report.batch_size} x {report.context}"],
        ["how", f"{report.precision}, {report.engine}, {report.device}, {report.threads} threads"],
        ["measured", f"median of {report.repeat} rounds of {report.steps} steps, torch {report.torch}"],
    ]


def peer_rows(report: Report) -> list[list[str]]:
    """The peers as lines for people."""
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
