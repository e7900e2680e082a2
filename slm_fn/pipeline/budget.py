"""What a config costs before it is run: parameters by part, memory to train and to serve, time, and where it fits.

Invariant: memory to train is that of the real step, run without numbers (`core.footprint`); no formula guesses it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal

import msgspec
import torch

from slm_fn.config import Config
from slm_fn.core import device as devices
from slm_fn.core import tree
from slm_fn.core.footprint import Footprint, footprint
from slm_fn.core.types import LMBatch
from slm_fn.loss.lm import next_token
from slm_fn.nn import gpt
from slm_fn.pipeline.limits import USUAL_SHARE, matmul_rate
from slm_fn.pipeline.ranks import Ranks
from slm_fn.pipeline.step import plan

MIB = 1 << 20
HEAP = 1.4
"""How much more a CPU process holds than its tensors: what the C library's heap loses between blocks."""
CONTEXT_MIB, POOL = 600, 1.05
"""On an accelerator: its context and kernels, and what PyTorch's pool loses between blocks."""
FILL = 0.95
"""How full a device may be for a placement to count as one that fits."""
REMAT_COST = 4 / 3
"""Recomputing the forward pass makes three products four."""

Where = Literal["one device", "replicate", "shard", "tensor parallel"]


class Placement(msgspec.Struct, frozen=True):
    """One way to run the config, and what each device then holds. Rows at a time are a device's."""

    where: Where
    devices: int
    rows_at_a_time: int
    accumulate: int
    remat: bool
    memory_mib: float
    fits: bool
    tok_per_s: float
    hours: float
    settings: list[str]


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What a config costs. `activations_mib` is all that a step holds beside parameters, gradients and optimizer."""

    params: int
    params_by_part: dict[str, int]
    flops_per_token: int
    tokens: int
    tokens_per_param: float
    precision: str
    batch_size: int
    context: int
    train_params_mib: float
    train_gradients_mib: float
    train_optimizer_mib: float
    train_activations_mib: float
    train_activations_remat_mib: float
    train_peak_mib: float
    train_peak_remat_mib: float
    rows_at_a_time: int
    process_mib: float
    serve_weights_mib: dict[str, float]
    kv_cache_mib_per_row: dict[str, float]
    matmul_flop_per_s: float
    speed_from: str
    tok_per_s: float
    hours: float
    device: str
    device_memory_mib: float | None
    placements: list[Placement]
    recommended: Placement | None


def budget(
    config: Config,
    device: str = "auto",
    num_devices: int = 1,
    memory_gib: float | None = None,
    tflops: float | None = None,
) -> Budget:
    """What pre-training by a config costs, and which placement to take.

    Args:
        memory_gib: of each device, where the config is to run on others than this machine's; they are then taken for
            accelerators.
        tflops: at which each of them multiplies matrices; by default as measured here.

    Raises:
        ValueError: the model makes no sense, or a number is none.

    Example:
        >>> from slm_fn import config as configs
        >>> found = budget(configs.load("tiny", ["model.num_layers=1"]), "cpu", memory_gib=1, tflops=100)
        >>> found.recommended.where
        'one device'
    """
    if num_devices < 1 or (memory_gib is not None and memory_gib <= 0) or (tflops is not None and tflops <= 0):
        raise ValueError("--devices, --device-memory and --device-tflops are numbers above zero")
    config = with_vocabulary(config)
    place = devices.resolve(device)
    elsewhere = memory_gib is not None or tflops is not None or num_devices > 1
    accelerated = elsewhere or place.type != "cpu"
    settings = config.pretrain.train
    name = "bfloat16" if settings.precision == "auto" and accelerated else settings.precision
    dtype = devices.dtype_of(name, place)
    rate = tflops * 1e12 if tflops else matmul_rate(place, dtype, repeat=3)
    memory = memory_gib * 1024 if memory_gib else _mib(devices.total_memory(place))
    process = CONTEXT_MIB if accelerated else devices.peak_memory(torch.device("cpu")) / MIB
    held = _Held(config, str(dtype).removeprefix("torch."), accelerated, process)
    speed = USUAL_SHARE * rate / gpt.flops(config.model, config.model.context)
    placements = _placements(held, num_devices, memory, speed)
    fitting = [p for p in placements if p.fits and p.devices == num_devices] or [p for p in placements if p.fits]
    tokens = settings.total_steps * settings.batch_size * config.model.context
    source = "as given" if tflops else f"measured here on {devices.name_of(place)}"
    source += "; for other devices give --device-tflops" if memory_gib and not tflops else ""
    return Budget(
        **_model_figures(config),
        **held.figures(),
        tokens=tokens,
        tokens_per_param=tokens / gpt.count(config.model),
        precision=held.precision,
        batch_size=settings.batch_size,
        rows_at_a_time=-(-settings.batch_size // settings.accumulate),
        process_mib=process,
        matmul_flop_per_s=rate,
        speed_from=f"{USUAL_SHARE:.0%} of {rate / 1e12:,.2f} TFLOP/s, {source}",
        tok_per_s=speed,
        hours=tokens / speed / 3600,
        device=f"{num_devices} x {memory_gib:g} GiB" if memory_gib else str(place),
        device_memory_mib=memory,
        placements=placements,
        recommended=next(iter(fitting), None),
    )


def with_vocabulary(config: Config) -> Config:
    """The config with its model's vocabulary, which a road leaves to its tokenizer."""
    vocab_size = config.model.vocab_size or config.tokenizer.vocab_size
    return msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, vocab_size=vocab_size))


def _mib(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else num_bytes / MIB


class _Held:
    """What a step of a config holds, by rows at a time, remat and accumulation; measured once for each."""

    def __init__(self, config: Config, precision: str, accelerated: bool, process_mib: float) -> None:
        self.config, self.precision = config, precision
        self.factor, self.process_mib = (POOL if accelerated else HEAP), process_mib
        self.lift = partial(_fused if accelerated and not config.model.attn_softcap else _as_is)
        self.run = cache(self._run)
        self.parts = cache(self._parts)

    def _run(self, rows: int, remat: bool) -> Footprint:
        shape, settings = self.config.model, self.config.pretrain.train
        settings = msgspec.structs.replace(
            settings, engine="eager", precision=self.precision, remat=remat, batch_size=rows, accumulate=1
        )
        how = plan(shape, next_token, self.config.pretrain.optim, settings, Ranks(torch.device("cpu")), self.lift)

        def batch_at(position: int) -> LMBatch:
            tokens = torch.zeros(rows, shape.context + 1, dtype=torch.long)
            return LMBatch(tokens, torch.ones(rows, shape.context))

        return footprint(how.make(1), lambda: (how.begin(_empty(shape)), how.batches(batch_at)(0)))

    def _parts(self) -> tuple[int, int]:
        """Bytes of the parameters, and of what the optimizer keeps."""
        params, given = 4 * gpt.count(self.config.model), self.run(1, False).given
        batch = 8 * (self.config.model.context + 1) + 4 * self.config.model.context
        return params, max(0, given - params - batch)

    def peak(self, rows: int, remat: bool) -> int:
        """The most that a step holds, in bytes: measured for one row and the whole batch, in between on a line."""
        most = self.config.pretrain.train.batch_size
        if rows in (1, most) or most < 3:
            return self.run(rows, remat).peak
        low, high = self.run(1, remat).peak, self.run(most, remat).peak
        return max(low, round(low + (high - low) * (rows - 1) / (most - 1)))

    def memory_mib(self, where: Where, num_devices: int, rows: int, accumulate: int, remat: bool) -> float:
        """What one device holds in a placement."""
        params, optimizer = self.parts()
        live = self.peak(rows, remat) + (params if accumulate > 1 else 0)
        if where == "shard":  # at rest a part of everything; within a step whole parameters and gradients
            live += (params + optimizer) // num_devices - optimizer
        elif where == "tensor parallel":  # activations stay whole at most
            live -= (2 * params + optimizer) * (num_devices - 1) // num_devices
        return self.process_mib + self.factor * live / MIB

    def figures(self) -> dict[str, Any]:
        """The parts of the memory of a step that takes its rows as the config says."""
        (params, optimizer), settings = self.parts(), self.config.pretrain.train
        rows, parts = -(-settings.batch_size // settings.accumulate), settings.accumulate
        rest = 2 * params + optimizer
        plain, remat = (self.peak(rows, flag) for flag in (False, True))
        return {
            "train_params_mib": params / MIB,
            "train_gradients_mib": params / MIB,
            "train_optimizer_mib": optimizer / MIB,
            "train_activations_mib": max(0, plain - rest) / MIB,
            "train_activations_remat_mib": max(0, remat - rest) / MIB,
            "train_peak_mib": self.memory_mib("one device", 1, rows, parts, False),
            "train_peak_remat_mib": self.memory_mib("one device", 1, rows, parts, True),
        }


def _empty(shape: gpt.ModelConfig) -> dict[str, Any]:
    return tree.update_in(gpt.spec(shape), lambda path, weight: torch.empty(weight.shape))


def _as_is(apply: Callable[..., Any]) -> Callable[..., Any]:
    return apply


def _fused(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Attention as accelerators do it, without the scores."""
    return partial(apply, backend="fused")


def _model_figures(config: Config) -> dict[str, Any]:
    shape, parts = config.model, dict.fromkeys(("embed", "attention", "ffn", "norms", "head"), 0)
    sizes = gpt.sizes(shape)
    for path, number in sizes.items():
        named = [("norm", "norms"), ("attn/", "attention"), ("ffn/", "ffn"), ("head", "head"), ("", "embed")]
        parts[next(part for mark, part in named if mark in path)] += number
    matrices = sum(sizes[path] for path in gpt.matrices(shape))
    total = sum(sizes.values())
    kept = {f"int{bits}": bits / 8 * matrices + 2 * (total - matrices) for bits in (8, 4)}
    cached = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * shape.context / MIB
    return {
        "params": total,
        "params_by_part": {part: number for part, number in parts.items() if number},
        "flops_per_token": gpt.flops(shape, shape.context),
        "context": shape.context,
        "serve_weights_mib": {
            name: number / MIB for name, number in {"float32": 4 * total, "bfloat16": 2 * total, **kept}.items()
        },
        "kv_cache_mib_per_row": {"float32": 4 * cached, "bfloat16": 2 * cached},
    }


def _placements(held: _Held, num_devices: int, memory: float | None, speed: float) -> list[Placement]:
    """Simplest first; each in the largest parts that fit, recomputing only where nothing else does."""
    settings = held.config.pretrain.train
    tokens = settings.total_steps * settings.batch_size * held.config.model.context
    ways: list[Where] = ["replicate", "shard", "tensor parallel"] if num_devices > 1 else []
    found = []
    for where in ["one device", *ways]:
        number = 1 if where == "one device" else num_devices
        rows = settings.batch_size if where in ("one device", "tensor parallel") else -(-settings.batch_size // number)
        tries = [(remat, parts) for remat in sorted({settings.remat, True}) for parts in _halvings(rows, settings)]
        for remat, parts in tries:
            mib = held.memory_mib(where, number, -(-rows // parts), parts, remat)
            if fits := memory is None or mib <= FILL * memory:
                break
        rate = speed * number / (REMAT_COST if remat else 1)
        told = _settings(where, number, parts, remat, settings.accumulate)
        hours = tokens / rate / 3600
        found.append(Placement(where, number, -(-rows // parts), parts, remat, mib, fits, rate, hours, told))
    return found


def _halvings(rows: int, settings: Any) -> list[int]:
    parts = [min(rows, settings.accumulate)]
    while parts[-1] < rows:
        parts.append(min(rows, 2 * parts[-1]))
    return parts


def _settings(where: Where, number: int, parts: int, remat: bool, asked: int) -> list[str]:
    """What to type for a placement."""
    return [
        *([f"torchrun --nproc-per-node {number}"] if where in ("replicate", "shard") else []),
        *(["pretrain.train.sharding=shard"] if where == "shard" else []),
        *(["lift.shard.tensor_parallel"] if where == "tensor parallel" else []),
        *([f"pretrain.train.accumulate={parts}"] if parts != asked else []),
        *(["pretrain.train.remat=true"] if remat else []),
    ]
