"""Optimizers by name: OptimConfig to one Transform.

Invariant: every recipe is a chain of parts from this room, so it saves, vmaps and shards as they do.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import torch

from slm_fn.core.types import Transform, Where
from slm_fn.optim import combine, guard, schedules, transforms


class OptimConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to turn gradients into updates. Rates are peaks; `muon` uses `learning_rate` for block matrices too."""

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup_steps: int = 20
    decay_fraction: float = 0.4
    floor: float = 0.0
    weight_decay: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.95
    muon_rate: float = 1.0
    clip: float = 1.0
    ema_decay: float = 0.0


def make_schedule(config: OptimConfig, total_steps: int) -> schedules.Schedule:
    """The schedule a config names, over a run of `total_steps`."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "cosine":
        return schedules.warmup_cosine(peak, warmup, total_steps, config.floor)
    if config.schedule == "wsd":
        return schedules.warmup_stable_decay(peak, warmup, total_steps, config.decay_fraction, config.floor)
    return schedules.constant(peak)


def make(config: OptimConfig, total_steps: int, matrix: Where, dtype: torch.dtype = torch.float32) -> Transform:
    """Clip, direction, decay, rate, average: the whole optimizer as one chain, guarded against NaN.

    Args:
        matrix: chooses block matrices by path: they decay, and with `muon` they are orthogonalised.
        dtype: in which Muon multiplies (bf16 where that is fast; its iteration does not mind).

    Example:
        >>> tx = make(OptimConfig(), 100, matrix=lambda path: path == "w")
        >>> params = {"w": torch.ones(2, 2), "norm": torch.ones(2)}
        >>> updates, state = tx.update(params, tx.init(params), params)
    """
    adam = transforms.scale_by_adam(config.b1, config.b2, config.eps)
    muon = combine.chain(transforms.scale_by_muon(config.momentum, dtype=dtype), combine.scale(config.muon_rate))
    parts = [
        *([transforms.clip_by_global_norm(config.clip)] if config.clip else []),
        adam if config.name == "adamw" else combine.partition(matrix, muon, adam),
        *([transforms.add_decayed_weights(config.weight_decay, matrix)] if config.weight_decay else []),
        transforms.scale_by_learning_rate(make_schedule(config, total_steps)),
        *([transforms.params_ema(config.ema_decay)] if config.ema_decay else []),
    ]
    return guard.skip_nonfinite(combine.chain(*parts))
