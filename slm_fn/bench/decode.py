"""How fast a model generates here, beside the rate at which this machine reads memory, and beside peers in one run.

Invariant: what is measured is the engine that `slm serve` runs; every contestant has a process of its own, in turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from slm_fn.bench import decode_peers
from slm_fn.bench.decode_peers import Pace, Work
from slm_fn.bench.measure import Call, rounds
from slm_fn.core import device as devices
from slm_fn.core import random, tree
from slm_fn.core.types import Params
from slm_fn.infer import decode, fast
from slm_fn.infer import engine as engines
from slm_fn.infer.engine import EngineConfig
from slm_fn.infer.request import Request
from slm_fn.infer.sample import SampleConfig
from slm_fn.lift import quant
from slm_fn.nn import gpt
from slm_fn.nn.gpt import ModelConfig
from slm_fn.pipeline import model as models
from slm_fn.pipeline.limits import read_rate

SHAPE = ModelConfig(vocab_size=49_152, dim=576, num_layers=30, num_heads=9, num_kv_heads=3, ffn_dim=1536, context=2048)
"""SmolLM2-135M's, with random weights: what is measured where no model is named."""
PRECISIONS = ("bf16", "int8", "int4")


class Found(NamedTuple):
    """One round of ours: its paces, the read rate before and after (their mean), and what a token reads."""

    pace: Pace
    read_bytes_per_s: float
    bytes_per_token: int
    engine: str


class PeerReport(msgspec.Struct, frozen=True):
    """One peer; ratios are how many times as fast we are in the same rounds: bf16 and int8 at one request."""

    name: str
    tok_per_s: float
    prefill_tok_per_s: float
    batch8_tok_per_s: float
    first_token_p50_ms: float
    bf16_ratio: float
    int8_ratio: float
    prefill_ratio: float
    batch8_ratio: float


class Report(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Medians over rounds. Shares are of the read rate: bytes of weights per token times tokens per second over it.

    `prefill`, `batch8` and `first_token` are of bf16; those of int8 and int4 have their names before them. First
    tokens are those of 8 requests that come at once. A speedup is that of 8 requests over one, both with their prompts.
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
    peers: list[PeerReport] | None = None


def run(
    model: Path | None = None,
    device: str = "auto",
    repeat: int = 3,
    peers: Sequence[str] = (),
    gguf: Path | None = None,
    engine: str = "auto",
    work: Work | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Report:
    """Generate with one request and with eight, read a long prompt, in turn with the peers, several times.

    Args:
        model: a model folder; None takes random weights of `SHAPE`.
        gguf: the file that llama.cpp reads.

    Raises:
        ValueError: a peer is not installed, or has nothing to run.
    """
    config = SHAPE if model is None else models.describe_at(model).model
    decode_peers.check(peers, gguf)
    place = devices.resolve(device)
    work = work or decode_peers.work_for(config.vocab_size, config.context, torch.get_num_threads(), str(place))
    calls: dict[str, Call] = {name: (contestant, (config, model, name, engine, work)) for name in PRECISIONS}
    calls |= {name: (decode_peers.run, (name, config, gguf, work)) for name in peers}
    return _report(config, work, rounds(calls, repeat, note, _told), repeat)


def contestant(config: ModelConfig, model: Path | None, precision: str, engine: str, work: Work) -> Found:
    """Generate in this process by the engine, and say how fast."""
    place = torch.device(work.device)
    devices.set_threads(work.threads)
    before = read_rate(place)
    params = _params(config, model, precision, place)
    decoder = fast.choose(config, params, engine)
    limits = EngineConfig(max_batch=8, size=min(config.context, 512), prefix_tokens=0)
    made = engines.make(decoder.apply, lambda *room: gpt.init_cache(config, *room), params, limits)

    def generate(rows: int, length: int, num_new: int) -> tuple[float, list[float]]:
        """Seconds until all is written, and until each row's first token."""
        prompts = [tuple(work.prompt(row, length)) for row in range(rows)]
        requests = [Request(ids, SampleConfig(temperature=0.0), max_tokens=num_new) for ids in prompts]
        begun = time.perf_counter()
        firsts: dict[int, float] = {}
        for token in decode.run(made, requests):
            firsts.setdefault(token.key, time.perf_counter() - begun)
        return time.perf_counter() - begun, list(firsts.values())

    found = decode_peers.pace(generate, work)
    rate = statistics.mean([before, read_rate(place)])
    return Found(found, rate, _bytes_per_token(config, params), decoder.engine)


def _params(config: ModelConfig, model: Path | None, precision: str, place: torch.device) -> Params:
    few = None if precision == "bf16" else quant.NAMED[precision]
    if model is not None:
        return models.load(model, place, dtype=torch.bfloat16, quantize=few).params

    def draw(path: str, weight: gpt.Weight) -> torch.Tensor:
        if weight.std is None:
            return torch.ones(weight.shape)
        return random.normal(random.fold_in(0, path), weight.shape, weight.std or weight.shape[-1] ** -0.5)

    params = tree.update_in(gpt.spec(config), draw)
    if few is not None:
        params = quant.quantize(params, few, gpt.matrices(config).__contains__)
    return tree.to_device(tree.cast(params, torch.bfloat16), place)


def _bytes_per_token(config: ModelConfig, params: Params) -> int:
    """Of the weights that a step reads whole: an embedding that is no head gives a row alone."""
    read = {name: leaf for name, leaf in params.items() if name != "embed" or config.tied}
    return sum(leaf.numel() * leaf.element_size() for leaf in tree.leaves(read))


def _told(found: Any) -> str:
    pace = found.pace if isinstance(found, Found) else found
    return f"{pace.tok_per_s:,.0f} tok/s, 8 at once {pace.batch8_tok_per_s:,.0f}, prompts {pace.prefill_tok_per_s:,.0f}"


def _report(config: ModelConfig, work: Work, found: dict[str, list[Any]], repeat: int) -> Report:
    place = torch.device(work.device)

    def median(name: str, field: str) -> float:
        return statistics.median(getattr(run.pace if isinstance(run, Found) else run, field) for run in found[name])

    def share(name: str) -> float:
        return statistics.median(r.pace.tok_per_s * r.bytes_per_token / r.read_bytes_per_s for r in found[name])

    def speedup(name: str) -> float:
        return statistics.median(run.pace.batch8_tok_per_s / run.pace.request_tok_per_s for run in found[name])

    def ratio(name: str, peer: str, field: str) -> float:
        pairs = zip(found[name], found[peer], strict=True)
        return statistics.median(getattr(own.pace, field) / getattr(other, field) for own, other in pairs)

    beside = [
        PeerReport(
            name=name,
            tok_per_s=median(name, "tok_per_s"),
            prefill_tok_per_s=median(name, "prefill_tok_per_s"),
            batch8_tok_per_s=median(name, "batch8_tok_per_s"),
            first_token_p50_ms=median(name, "first_token_p50_ms"),
            bf16_ratio=ratio("bf16", name, "tok_per_s"),
            int8_ratio=ratio("int8", name, "tok_per_s"),
            prefill_ratio=ratio("bf16", name, "prefill_tok_per_s"),
            batch8_ratio=ratio("bf16", name, "batch8_tok_per_s"),
        )
        for name in found
        if name not in PRECISIONS
    ]
    own = [run for name in PRECISIONS for run in found[name]]
    return Report(
        read_gb_per_s=statistics.median(run.read_bytes_per_s for run in own) / 1e9,
        bf16_tok_per_s=median("bf16", "tok_per_s"),
        bf16_bandwidth_share=share("bf16"),
        int8_tok_per_s=median("int8", "tok_per_s"),
        int8_bandwidth_share=share("int8"),
        int4_tok_per_s=median("int4", "tok_per_s"),
        int4_bandwidth_share=share("int4"),
        prefill_tok_per_s=median("bf16", "prefill_tok_per_s"),
        int8_prefill_tok_per_s=median("int8", "prefill_tok_per_s"),
        batch8_tok_per_s=median("bf16", "batch8_tok_per_s"),
        int8_batch8_tok_per_s=median("int8", "batch8_tok_per_s"),
        int4_batch8_tok_per_s=median("int4", "batch8_tok_per_s"),
        batch8_speedup=speedup("bf16"),
        int8_batch8_speedup=speedup("int8"),
        first_token_p50_ms=median("bf16", "first_token_p50_ms"),
        int8_first_token_p50_ms=median("int8", "first_token_p50_ms"),
        engine=own[0].engine,
        params=gpt.count(config),
        device=str(place),
        device_name=devices.name_of(place),
        threads=work.threads,
        prompt_tokens=work.prompt_tokens,
        new_tokens=work.new_tokens,
        repeat=repeat,
        torch=str(torch.__version__),
        peers=beside or None,
    )


def rows(report: Report) -> list[list[str]]:
    """The report as lines for people."""

    def line(speed: float, share: float) -> str:
        return f"{speed:,.0f} tokens/s, {share:.0%} of what reading the weights allows"

    return [
        ["memory", f"{report.read_gb_per_s:.1f} GB/s read"],
        ["bf16", line(report.bf16_tok_per_s, report.bf16_bandwidth_share)],
        ["int8", line(report.int8_tok_per_s, report.int8_bandwidth_share)],
        ["int4", line(report.int4_tok_per_s, report.int4_bandwidth_share)],
        ["8 at once", f"bf16 {report.batch8_tok_per_s:,.0f}, int8 {report.int8_batch8_tok_per_s:,.0f} tokens/s in all"],
        ["prompts", f"bf16 {report.prefill_tok_per_s:,.0f}, int8 {report.int8_prefill_tok_per_s:,.0f} tokens/s"],
        ["first token", f"bf16 {report.first_token_p50_ms:,.0f} ms, int8 {report.int8_first_token_p50_ms:,.0f} ms"],
        ["how", f"{report.engine}, {report.device}, {report.threads} threads, {report.params:,} parameters"],
        ["measured", f"median of {report.repeat} rounds, torch {report.torch}"],
    ]


def peer_rows(report: Report) -> list[list[str]]:
    """The peers as lines for people."""
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
