"""Optimizers by name: from an OptimConfig to one Transform.

Invariant: every recipe is a chain of transforms of this package, so it saves, vmaps and shards as
they do.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import torch
from torch import Tensor

from slm_fn.core.types import Path, PathPredicate, Transform
from slm_fn.optim import (
    adafactor,
    combine,
    diagnostics,
    directions,
    guard,
    muon,
    schedules,
    transforms,
)

Measure = Literal["grad_norms", "noise_scale", "update_ratio"]
Rate = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Decay = Annotated[float, msgspec.Meta(ge=0, lt=1)]

MUON_COEFFICIENTS = {
    "jordan": muon.JORDAN_COEFFICIENTS,
    "polar": muon.POLAR_EXPRESS_COEFFICIENTS,
}


class OptimConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How gradients become updates. Rates are peaks of the schedule.

    `muon` applies `learning_rate` to block matrices too, times `muon_rate`, and uses Adam for all
    other leaves. `momentum` and `nesterov` belong to muon and sgd, `b1` and `b2` to the others.

    Fields whose name needs a word:
        decay_fraction, decay_shape: of the `wsd` schedule.
        rise_fraction, low_momentum: of the `onecycle` schedule; 0 keeps momentum constant.
        floor: the last learning rate as a fraction of the peak.
        muon_steps: coefficients of the orthogonalisation: `jordan` or `polar` (Polar Express).
        muon_fit: how Muon scales with the shape of a matrix, see `muon.scale_by_muon`.
        relative: lower bound of a parameter's root mean square in Adafactor's relative step; 0 is
            an absolute step.
        clip: largest global norm of the gradient; 0 is no clipping.
        spike_factor: skip a gradient this many times larger than the running norm; 0 is off.
        ema_decay: of the average of the parameters; 0 is no average.
        measures: what to record at every step, see `diagnostics`.
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
    config: OptimConfig,
    total_steps: int,
    peak: float | Tensor | None = None,
) -> schedules.Schedule:
    """Returns the learning-rate schedule that a config describes.

    Args:
        config: names the schedule and its parameters.
        total_steps: number of updates of the run.
        peak: replaces `config.learning_rate`.

    Example:
        >>> schedule = make_schedule(OptimConfig(warmup_steps=2, learning_rate=1.0), 10)
        >>> schedule(torch.tensor(0.0))
        tensor(0.5000)
    """
    peak = config.learning_rate if peak is None else peak
    warmup_steps = config.warmup_steps
    min_lr_ratio = config.floor
    match config.schedule:
        case "cosine":
            return schedules.warmup_cosine(peak, warmup_steps, total_steps, min_lr_ratio)
        case "linear":
            return schedules.warmup_linear(peak, warmup_steps, total_steps, min_lr_ratio)
        case "wsd":
            return schedules.warmup_stable_decay(
                peak,
                warmup_steps,
                total_steps,
                decay_fraction=config.decay_fraction,
                min_lr_ratio=min_lr_ratio,
                shape=config.decay_shape,
            )
        case "onecycle":
            return schedules.one_cycle(
                peak, total_steps, config.rise_fraction, min_lr_ratio=min_lr_ratio
            )
        case "constant":
            return schedules.constant(peak, warmup_steps)


def make_optimizer(
    config: OptimConfig,
    total_steps: int,
    is_matrix: PathPredicate,
    dtype: torch.dtype = torch.float32,
    hyperparams_in_state: bool = False,
) -> Transform:
    """Builds an optimizer: clip, direction, weight decay, learning rate, average, as one chain.

    Steps with NaN or infinity in the gradient are skipped.

    Args:
        config: the optimizer's name and hyper-parameters.
        total_steps: number of updates of the run, for the schedule.
        is_matrix: chooses block matrices by path: weight decay applies to them alone, and `muon`
            orthogonalises them.
        dtype: of the model's computation. Muon multiplies in it, and float16 adds the loss scale
            that it needs.
        hyperparams_in_state: keep learning rate and weight decay in the state, so that the members
            of an ensemble can have different ones.

    Example:
        >>> tx = make_optimizer(OptimConfig(), 100, is_matrix=lambda path: path == "w")
        >>> params = {"w": torch.ones(2, 2), "norm": torch.ones(2)}
        >>> updates, state = tx.update(params, tx.init(params), params)
    """
    build = partial(_build_chain, config, total_steps, is_matrix, dtype)
    hyperparams: dict[str, Any] = {}
    if hyperparams_in_state:
        hyperparams["learning_rate"] = config.learning_rate
        hyperparams["weight_decay"] = config.weight_decay
    if config.schedule == "onecycle" and config.low_momentum:
        # Checkpoints store the value under this name.
        hyperparams["dip"] = schedules.one_cycle_fraction(total_steps, config.rise_fraction)
    transform = combine.inject_hyperparams(build, **hyperparams) if hyperparams else build()

    checks = [guard.adapt_loss_scale() if dtype == torch.float16 else guard.check_finite()]
    if config.spike_factor:
        checks.append(guard.check_spikes(config.spike_factor))
    return guard.skip_steps(transform, *checks)


def _build_chain(
    config: OptimConfig,
    total_steps: int,
    is_matrix: PathPredicate,
    dtype: torch.dtype,
    learning_rate: float | Tensor | None = None,
    weight_decay: float | Tensor | None = None,
    dip: float | Tensor = 0.0,
) -> Transform:
    """The chain without its guard.

    Args:
        dip: how far momentum has fallen to `config.low_momentum`, 0 to 1.
    """
    if weight_decay is None:
        weight_decay = config.weight_decay
    links: list[Transform] = []
    if "grad_norms" in config.measures:
        links.append(diagnostics.leaf_norms("grad_norm"))
    if "noise_scale" in config.measures:
        links.append(diagnostics.gradient_noise_scale())
    if config.clip:
        links.append(transforms.clip_by_global_norm(config.clip))
    links.append(_make_direction(config, is_matrix, dtype, dip))
    if isinstance(weight_decay, Tensor) or weight_decay:
        links.append(transforms.add_decayed_weights(weight_decay, is_matrix))
    schedule = make_schedule(config, total_steps, learning_rate)
    links.append(transforms.scale_by_learning_rate(schedule))
    if "update_ratio" in config.measures:
        links.append(diagnostics.update_ratio())
    if config.ema_decay:
        links.append(transforms.params_ema(config.ema_decay))
    return combine.chain(*links)


def _make_direction(
    config: OptimConfig,
    is_matrix: PathPredicate,
    dtype: torch.dtype,
    dip: float | Tensor,
) -> Transform:
    def lowered(high: float) -> float | Tensor:
        return high + dip * (min(config.low_momentum, high) - high)

    b1 = lowered(config.b1)
    momentum = lowered(config.momentum)
    adam = directions.scale_by_adam(b1, config.b2, config.eps)
    match config.name:
        case "adamw":
            return adam
        case "lion":
            return directions.scale_by_lion(b1, config.b2)
        case "sgd":
            return directions.scale_by_momentum(momentum, config.nesterov)
        case "adafactor":
            scaling = combine.partition(
                _is_factored(is_matrix),
                adafactor.scale_by_factored_rms(min_param_rms=config.relative),
                adafactor.scale_by_rms(min_param_rms=config.relative),
            )
            return combine.chain(scaling, adafactor.average_updates(b1)) if config.b1 else scaling
        case "muon":
            matrix_direction = combine.chain(
                muon.scale_by_muon(
                    momentum,
                    config.nesterov,
                    MUON_COEFFICIENTS[config.muon_steps],
                    config.muon_fit,
                    dtype,
                ),
                combine.scale(config.muon_rate),
            )
            return combine.partition(is_matrix, matrix_direction, adam)


def _is_factored(is_matrix: PathPredicate) -> PathPredicate:
    """Chooses block matrices, embedding and head.

    All other leaves of `blocks` are stacks of vectors, whatever their number of dimensions.
    """

    def where(path: Path) -> bool:
        return is_matrix(path) or path.startswith(("embed", "head"))

    return where


class ParamGroup(NamedTuple):
    """Leaves with the same direction and hyper-parameters."""

    name: str
    paths: tuple[Path, ...]
    settings: dict[str, float]


def param_groups(
    config: OptimConfig,
    paths: Iterable[Path],
    is_matrix: PathPredicate,
) -> list[ParamGroup]:
    """Returns the direction, learning rate and weight decay of every leaf, to show before a run.

    Args:
        config: the optimizer's name and hyper-parameters.
        paths: of all leaves.
        is_matrix: chooses block matrices by path.

    Example:
        >>> paths = ["embed", "blocks/ffn/up"]
        >>> for group in param_groups(OptimConfig(name="muon"), paths, lambda path: "ffn" in path):
        ...     print(*group)
        muon ('blocks/ffn/up',) {'learning_rate': 0.001, 'weight_decay': 0.1}
        adam ('embed',) {'learning_rate': 0.001, 'weight_decay': 0.0}
    """
    matrix_paths: list[Path] = []
    other_paths: list[Path] = []
    for path in paths:
        if is_matrix(path):
            matrix_paths.append(path)
        else:
            other_paths.append(path)

    matrix_settings = {"learning_rate": config.learning_rate, "weight_decay": config.weight_decay}
    other_settings = {"learning_rate": config.learning_rate, "weight_decay": 0.0}
    other_name: str = config.name
    if config.name == "muon":
        matrix_settings["learning_rate"] = config.learning_rate * config.muon_rate
        other_name = "adam"
    groups = [
        ParamGroup(config.name, tuple(matrix_paths), matrix_settings),
        ParamGroup(other_name, tuple(other_paths), other_settings),
    ]
    return [group for group in groups if group.paths]
