"""What a config costs before it is run: parameters, memory to train and to serve, time, placement.

Invariant: training memory is that of the real step, run without numbers (`core.footprint`), not a
formula's estimate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import torch

from slm_fn.config import Config
from slm_fn.core import device as devices
from slm_fn.nn import gpt
from slm_fn.pipeline.planning.roofline import USUAL_MATMUL_SHARE, matmul_rate
from slm_fn.pipeline.planning.step_memory import MIB, StepMemory, Strategy, ceil_div
from slm_fn.train.config import TrainConfig

MAX_FILL = 0.95
"""The fullest a device may be for a placement to count as fitting."""
REMAT_COST = 4 / 3
"""Recomputing the forward pass makes four products of three."""
GROUP_BY_PATH = (
    ("norm", "norms"),
    ("attn/", "attention"),
    ("ffn/", "ffn"),
    ("head", "head"),
    ("", "embed"),
)
"""The group of a parameter: that of the first of these substrings that its path contains."""


class Placement(msgspec.Struct, frozen=True):
    """One way to run the config. `rows_at_a_time` and `memory_mib` are those of each device."""

    where: Strategy
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
    """The cost of a config.

    Activations are all that a step holds beside parameters, gradients and optimizer state.
    """

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
    """The cost of pre-training by a config, and the placement to use.

    Args:
        memory_gib: memory of each device, then taken for an accelerator; None takes this machine's.
        tflops: matmul rate of each device; None measures this machine's.

    Raises:
        ValueError: the model's options do not go together, or a number is not positive.

    Example:
        >>> from slm_fn import config as configs
        >>> config = configs.load("tiny", ["model.num_layers=1"])
        >>> budget(config, "cpu", memory_gib=1, tflops=100).recommended.where
        'one device'
    """
    given = [number for number in (num_devices, memory_gib, tflops) if number is not None]
    if min(given) <= 0:
        raise ValueError("--devices, --device-memory and --device-tflops are numbers above zero")
    config = with_vocabulary(config)
    settings = config.pretrain.train
    local = devices.resolve(device)
    is_elsewhere = num_devices > 1 or memory_gib is not None or tflops is not None
    is_accelerated = is_elsewhere or local.type != "cpu"
    dtype = _compute_dtype(settings, local, is_accelerated)
    rate = tflops * 1e12 if tflops else matmul_rate(local, dtype, repeat=3)
    memory_mib = memory_gib * 1024 if memory_gib else _mib(devices.total_memory(local))
    memory = StepMemory(config, str(dtype).removeprefix("torch."), is_accelerated)
    model = config.model
    tok_per_s = USUAL_MATMUL_SHARE * rate / gpt.train_flops_per_token(model, model.context)
    placements = list(_placements(memory, num_devices, memory_mib, tok_per_s))
    tokens = settings.total_steps * settings.batch_size * model.context
    source = "as given" if tflops else f"measured here on {devices.device_name(local)}"
    if memory_gib and not tflops:
        source += "; for other devices give --device-tflops"

    return Budget(
        **_model_figures(config),
        **memory.figures(),
        tokens=tokens,
        tokens_per_param=tokens / gpt.count_params(model),
        precision=memory.precision,
        batch_size=settings.batch_size,
        rows_at_a_time=ceil_div(settings.batch_size, settings.accumulate),
        process_mib=memory.process_mib,
        matmul_flop_per_s=rate,
        speed_from=f"{USUAL_MATMUL_SHARE:.0%} of {rate / 1e12:,.2f} TFLOP/s, {source}",
        tok_per_s=tok_per_s,
        hours=tokens / tok_per_s / 3600,
        device=f"{num_devices} x {memory_gib:g} GiB" if memory_gib else str(local),
        device_memory_mib=memory_mib,
        placements=placements,
        recommended=_recommended(placements, num_devices),
    )


def with_vocabulary(config: Config) -> Config:
    """The config with its model's vocabulary size, which may be left to the tokenizer."""
    vocab_size = config.model.vocab_size or config.tokenizer.vocab_size
    model = msgspec.structs.replace(config.model, vocab_size=vocab_size)
    return msgspec.structs.replace(config, model=model)


def _compute_dtype(
    settings: TrainConfig, device: torch.device, is_accelerated: bool
) -> torch.dtype:
    """`auto` is bfloat16 on accelerators, whatever this machine is fast in."""
    use_bfloat16 = settings.precision == "auto" and is_accelerated
    return devices.resolve_dtype("bfloat16" if use_bfloat16 else settings.precision, device)


def _mib(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else num_bytes / MIB


def _model_figures(config: Config) -> dict[str, Any]:
    """The fields of `Budget` that follow from the model alone."""
    model = config.model
    sizes = gpt.param_sizes(model)
    total = sum(sizes.values())
    num_in_matrices = sum(sizes[path] for path in gpt.matrix_paths(model))
    num_others = total - num_in_matrices
    num_cached = 2 * model.num_layers * model.num_kv_heads * model.head_dim * model.context
    return {
        "params": total,
        "params_by_part": _params_by_group(sizes),
        "flops_per_token": gpt.train_flops_per_token(model, model.context),
        "context": model.context,
        "serve_weights_mib": {
            "float32": 4 * total / MIB,
            "bfloat16": 2 * total / MIB,
            "int8": (num_in_matrices + 2 * num_others) / MIB,
            "int4": (0.5 * num_in_matrices + 2 * num_others) / MIB,
        },
        "kv_cache_mib_per_row": {
            "float32": 4 * num_cached / MIB,
            "bfloat16": 2 * num_cached / MIB,
        },
    }


def _params_by_group(sizes: dict[str, int]) -> dict[str, int]:
    groups = dict.fromkeys(("embed", "attention", "ffn", "norms", "head"), 0)
    for path, size in sizes.items():
        group = next(group for substring, group in GROUP_BY_PATH if substring in path)
        groups[group] += size
    return {group: size for group, size in groups.items() if size}


def _placements(
    memory: StepMemory, num_devices: int, limit_mib: float | None, tok_per_s: float
) -> Iterator[Placement]:
    """One placement per strategy, the simplest first."""
    strategies: list[Strategy] = ["one device"]
    if num_devices > 1:
        strategies += ["replicate", "shard", "tensor parallel"]
    settings = memory.config.pretrain.train
    tokens = settings.total_steps * settings.batch_size * memory.config.model.context
    for where in strategies:
        count = 1 if where == "one device" else num_devices
        attempt = _largest_fitting(memory, where, count, limit_mib)
        rate = tok_per_s * count
        if attempt.remat:
            rate /= REMAT_COST
        yield Placement(
            where,
            count,
            attempt.rows_at_a_time,
            attempt.accumulate,
            attempt.remat,
            attempt.memory_mib,
            attempt.fits,
            rate,
            tokens / rate / 3600,
            _settings(where, count, attempt, settings),
        )


class _Attempt(NamedTuple):
    rows_at_a_time: int
    accumulate: int
    remat: bool
    memory_mib: float
    fits: bool


def _largest_fitting(
    memory: StepMemory, where: Strategy, num_devices: int, limit_mib: float | None
) -> _Attempt:
    """The fewest micro-batches that fit, with remat only where nothing else fits; else the last."""
    settings = memory.config.pretrain.train
    is_split = where in ("replicate", "shard")
    num_rows = ceil_div(settings.batch_size, num_devices) if is_split else settings.batch_size
    for remat in sorted({settings.remat, True}):
        for accumulate in _micro_batch_counts(num_rows, settings):
            micro_rows = ceil_div(num_rows, accumulate)
            mib = memory.memory_mib(where, num_devices, micro_rows, accumulate, remat)
            fits = limit_mib is None or mib <= MAX_FILL * limit_mib
            attempt = _Attempt(micro_rows, accumulate, remat, mib, fits)
            if fits:
                return attempt
    return attempt


def _micro_batch_counts(num_rows: int, settings: TrainConfig) -> list[int]:
    """The config's count and its doublings, up to one row at a time."""
    counts = [min(num_rows, settings.accumulate)]
    while counts[-1] < num_rows:
        counts.append(min(num_rows, 2 * counts[-1]))
    return counts


def _settings(
    where: Strategy, num_devices: int, attempt: _Attempt, settings: TrainConfig
) -> list[str]:
    """What to type for a placement."""
    typed = []
    if where in ("replicate", "shard"):
        typed.append(f"torchrun --nproc-per-node {num_devices}")
    if where == "shard":
        typed.append("pretrain.train.sharding=shard")
    if where == "tensor parallel":
        typed.append("lift.shard.tensor_parallel")
    if attempt.accumulate != settings.accumulate:
        typed.append(f"pretrain.train.accumulate={attempt.accumulate}")
    if attempt.remat:
        typed.append("pretrain.train.remat=true")
    return typed


def _recommended(placements: list[Placement], num_devices: int) -> Placement | None:
    """The first placement that fits, on all devices if one does."""
    fitting = [placement for placement in placements if placement.fits]
    on_all = [placement for placement in fitting if placement.devices == num_devices]
    return next(iter([*on_all, *fitting]), None)
