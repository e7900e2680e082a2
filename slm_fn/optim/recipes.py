"""Optimizers by name: OptimConfig to one Transform.

Invariant: every recipe is a chain of parts from this room, so it saves, vmaps and shards as they do.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import torch
from torch import Tensor

from slm_fn.core.types import Path, Transform, Where
from slm_fn.optim import adafactor, combine, directions, guard, measure, muon, schedules, transforms

Measure = Literal["grad_norms", "noise_scale", "update_ratio"]
Rate = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Decay = Annotated[float, msgspec.Meta(ge=0, lt=1)]


class OptimConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to turn gradients into updates. Rates are peaks; `muon` uses `learning_rate` for block matrices too.

    `momentum` and `nesterov` are muon's and sgd's, `b1` and `b2` everyone else's; muon's vectors take Adam.
    """

    name: Literal["adamw", "muon", "lion", "sgd", "adafactor"] = "adamw"
    learning_rate: Rate = 1e-3
    schedule: Literal["cosine", "linear", "wsd", "onecycle", "constant"] = "cosine"
    warmup_steps: Annotated[int, msgspec.Meta(ge=0)] = 20
    decay_fraction: Share = 0.4
    decay_shape: Literal["linear", "sqrt"] = "linear"
    rise_fraction: Share = 0.3
    low_momentum: Decay = 0.85
    floor: Share = 0.0
    weight_decay: Rate = 0.1
    b1: Decay = 0.9
    b2: Decay = 0.95
    eps: Rate = 1e-8
    momentum: Decay = 0.95
    nesterov: bool = True
    muon_rate: Rate = 1.0
    muon_steps: Literal["jordan", "polar"] = "jordan"
    muon_fit: Literal["rms", "shape"] = "rms"
    relative: Rate = 0.0
    clip: Rate = 1.0
    spike_factor: Rate = 0.0
    ema_decay: Decay = 0.0
    measures: tuple[Measure, ...] = ()


def make_schedule(
    config: OptimConfig, total_steps: int, learning_rate: float | Tensor | None = None
) -> schedules.Schedule:
    """The schedule a config names, over a run of `total_steps`; with another peak if one is given."""
    peak = config.learning_rate if learning_rate is None else learning_rate
    warmup, floor = config.warmup_steps, config.floor
    match config.schedule:
        case "cosine":
            return schedules.warmup_cosine(peak, warmup, total_steps, floor)
        case "linear":
            return schedules.warmup_linear(peak, warmup, total_steps, floor)
        case "wsd":
            return schedules.warmup_stable_decay(
                peak, warmup, total_steps, config.decay_fraction, floor, config.decay_shape
            )
        case "onecycle":
            return schedules.one_cycle(peak, total_steps, config.rise_fraction, floor=floor)
    return schedules.constant(peak, warmup)


def make(
    config: OptimConfig, total_steps: int, matrix: Where, dtype: torch.dtype = torch.float32, sweep: bool = False
) -> Transform:
    """Clip, direction, decay, rate, average: the whole optimizer as one chain, guarded against NaN.

    Args:
        matrix: chooses block matrices by path: they decay, and with `muon` they are orthogonalised.
        dtype: of the model's computation. Muon multiplies in it, and float16 brings the loss scale that it needs.
        sweep: hold learning rate and decay in the state, so that members of an ensemble may differ in them.

    Example:
        >>> tx = make(OptimConfig(), 100, matrix=lambda path: path == "w")
        >>> params = {"w": torch.ones(2, 2), "norm": torch.ones(2)}
        >>> updates, state = tx.update(params, tx.init(params), params)
    """
    build = partial(_chain, config, total_steps, matrix, dtype)
    held: dict[str, Any] = {}
    if sweep:
        held |= {"learning_rate": config.learning_rate, "weight_decay": config.weight_decay}
    if config.schedule == "onecycle" and config.low_momentum:
        held |= {"dip": schedules.one_cycle_dip(total_steps, config.rise_fraction)}
    watches = [guard.loss_scale() if dtype == torch.float16 else guard.finite()]
    watches += [guard.spikes(config.spike_factor)] if config.spike_factor else []
    return guard.guard(combine.inject(build, **held) if held else build(), *watches)


def _chain(
    config: OptimConfig,
    total_steps: int,
    matrix: Where,
    dtype: torch.dtype,
    learning_rate: float | Tensor | None = None,
    weight_decay: float | Tensor | None = None,
    dip: float | Tensor = 0.0,
) -> Transform:
    decay = config.weight_decay if weight_decay is None else weight_decay
    return combine.chain(
        *([measure.leaf_norms("grad_norm")] if "grad_norms" in config.measures else []),
        *([measure.noise_scale()] if "noise_scale" in config.measures else []),
        *([transforms.clip_by_global_norm(config.clip)] if config.clip else []),
        _direction(config, matrix, dtype, dip),
        *([transforms.add_decayed_weights(decay, matrix)] if isinstance(decay, Tensor) or decay else []),
        transforms.scale_by_learning_rate(make_schedule(config, total_steps, learning_rate)),
        *([measure.update_ratio()] if "update_ratio" in config.measures else []),
        *([transforms.params_ema(config.ema_decay)] if config.ema_decay else []),
    )


def _direction(config: OptimConfig, matrix: Where, dtype: torch.dtype, dip: float | Tensor) -> Transform:
    def dipped(high: float) -> float | Tensor:
        return high + dip * (min(config.low_momentum, high) - high)

    b1, momentum = dipped(config.b1), dipped(config.momentum)
    adam = directions.scale_by_adam(b1, config.b2, config.eps)
    match config.name:
        case "adamw":
            return adam
        case "lion":
            return directions.scale_by_lion(b1, config.b2)
        case "sgd":
            return directions.scale_by_momentum(momentum, config.nesterov)
        case "adafactor":
            whole, factored = adafactor.scale_by_rms, adafactor.scale_by_factored_rms
            part = combine.partition(
                _factored(matrix), factored(relative=config.relative), whole(relative=config.relative)
            )
            return combine.chain(part, adafactor.average_updates(b1)) if config.b1 else part
    steps = muon.POLAR if config.muon_steps == "polar" else muon.JORDAN
    turn = muon.scale_by_muon(momentum, config.nesterov, steps, config.muon_fit, dtype)
    return combine.partition(matrix, combine.chain(turn, combine.scale(config.muon_rate)), adam)


def _factored(matrix: Where) -> Where:
    """Block matrices, embedding and head. What else hangs in `blocks` is a stack of vectors, whatever its shape."""
    return lambda path: matrix(path) or path.startswith(("embed", "head"))


class Group(NamedTuple):
    """Leaves that are treated alike, and how."""

    name: str
    paths: tuple[Path, ...]
    settings: dict[str, float]


def groups(config: OptimConfig, paths: Iterable[Path], matrix: Where) -> list[Group]:
    """Who is orthogonalised, who decays, and at what rate: to be shown before a run.

    Example:
        >>> for group in groups(OptimConfig(name="muon"), ["embed", "blocks/ffn/up"], lambda path: "ffn" in path):
        ...     print(*group)
        muon ('blocks/ffn/up',) {'learning_rate': 0.001, 'weight_decay': 0.1}
        adam ('embed',) {'learning_rate': 0.001, 'weight_decay': 0.0}
    """
    turned = config.name == "muon"
    names = ("muon", "adam") if turned else (config.name, config.name)
    rates = (config.learning_rate * config.muon_rate if turned else config.learning_rate, config.learning_rate)
    parts: tuple[list[Path], list[Path]] = ([], [])
    for path in paths:
        parts[not matrix(path)].append(path)
    rows = zip(names, parts, rates, (config.weight_decay, 0.0), strict=True)
    return [
        Group(name, tuple(part), {"learning_rate": rate, "weight_decay": decay})
        for name, part, rate, decay in rows
        if part
    ]
