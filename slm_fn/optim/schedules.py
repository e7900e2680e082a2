"""Learning-rate schedules: pure functions from the number of updates to a learning rate.

Invariant: the argument and the result are tensors, so a schedule can be traced and vmapped. The
peak may be a tensor too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Schedule = Callable[[Tensor], Tensor]
"""From the number of updates so far, a float32 scalar, to the learning rate of the next one."""


def _progress(
    count: Tensor,
    first: int | float,
    last: int | float,
) -> Tensor:
    """The fraction of the way from one count to another, clamped to 0 and 1."""
    return ((count - first) / max(1.0, last - first)).clamp(0, 1)


def _half_cosine(progress: Tensor) -> Tensor:
    """From 1 down to 0, with slope zero at both ends."""
    return 0.5 * (1 + torch.cos(math.pi * progress))


def _warmup(count: Tensor, warmup_steps: int) -> Tensor:
    """`1 / warmup_steps` at the first update, 1 at the last of the warmup and after it."""
    return ((count + 1) / max(1, warmup_steps)).clamp(max=1)


def constant(peak: float | Tensor, warmup_steps: int = 0) -> Schedule:
    """Linear warmup from `peak / warmup_steps` to `peak`, then constant."""

    def rate(count: Tensor) -> Tensor:
        return peak * _warmup(count, warmup_steps)

    return rate


def warmup_linear(
    peak: float | Tensor,
    warmup_steps: int,
    total_steps: int,
    min_lr_ratio: float = 0.0,
) -> Schedule:
    """Linear warmup to `peak`, then linear decay to `min_lr_ratio * peak` at `total_steps`.

    Example:
        >>> schedule = warmup_linear(1.0, 2, 10, min_lr_ratio=0.2)
        >>> [round(schedule(torch.tensor(float(n))).item(), 2) for n in (0, 1, 2, 6, 10)]
        [0.5, 1.0, 1.0, 0.6, 0.2]
    """

    def rate(count: Tensor) -> Tensor:
        remaining = 1 - _progress(count, warmup_steps, total_steps)
        decay = min_lr_ratio + (1 - min_lr_ratio) * remaining
        return peak * torch.minimum(_warmup(count, warmup_steps), decay)

    return rate


def warmup_cosine(
    peak: float | Tensor,
    warmup_steps: int,
    total_steps: int,
    min_lr_ratio: float = 0.0,
) -> Schedule:
    """Linear warmup to `peak`, then half a cosine down to `min_lr_ratio * peak` at `total_steps`.

    Example:
        >>> schedule = warmup_cosine(1.0, 2, 10)
        >>> [round(schedule(torch.tensor(float(n))).item(), 2) for n in (0, 1, 2, 6, 10)]
        [0.5, 1.0, 1.0, 0.5, 0.0]

    References: arXiv 1608.03983.
    """

    def rate(count: Tensor) -> Tensor:
        remaining = _half_cosine(_progress(count, warmup_steps, total_steps))
        decay = min_lr_ratio + (1 - min_lr_ratio) * remaining
        return peak * torch.minimum(_warmup(count, warmup_steps), decay)

    return rate


def warmup_stable_decay(
    peak: float | Tensor,
    warmup_steps: int,
    total_steps: int,
    decay_fraction: float = 0.4,
    min_lr_ratio: float = 0.0,
    shape: Literal["linear", "sqrt"] = "linear",
) -> Schedule:
    """WSD: linear warmup, constant, then a decay over the last `decay_fraction` of the run.

    Args:
        peak: learning rate after the warmup.
        warmup_steps: number of updates of the warmup.
        total_steps: number of updates of the run.
        decay_fraction: share of the run, 0 to 1.
        min_lr_ratio: the last learning rate as a fraction of `peak`.
        shape: of the decay: `linear`, or `sqrt`, one minus the root of the progress, which falls
            faster at first.

    Example:
        >>> schedule = warmup_stable_decay(1.0, 2, 10, decay_fraction=0.5)
        >>> [round(schedule(torch.tensor(float(n))).item(), 2) for n in (0, 1, 5, 7, 10)]
        [0.5, 1.0, 1.0, 0.6, 0.0]

    References: arXiv 2404.06395, 2405.18392 (both shapes).
    """

    def rate(count: Tensor) -> Tensor:
        decay_steps = max(1.0, decay_fraction * total_steps)
        remaining = ((total_steps - count) / decay_steps).clamp(0, 1)
        if shape == "sqrt":
            remaining = 1 - (1 - remaining).sqrt()
        decay = min_lr_ratio + (1 - min_lr_ratio) * remaining
        return peak * torch.minimum(_warmup(count, warmup_steps), decay)

    return rate


def one_cycle(
    peak: float | Tensor,
    total_steps: int,
    rise_fraction: float = 0.3,
    initial_lr_ratio: float = 0.04,
    min_lr_ratio: float = 4e-6,
) -> Schedule:
    """One-cycle: half a cosine up to `peak`, then a longer half cosine down to the last update.

    Momentum moves in the opposite direction: see `one_cycle_fraction`.

    Args:
        peak: the highest learning rate.
        total_steps: number of updates of the run.
        rise_fraction: share of the run before the peak.
        initial_lr_ratio: the first learning rate as a fraction of `peak`.
        min_lr_ratio: the last learning rate as a fraction of `peak`.

    Example:
        >>> schedule = one_cycle(1.0, 11, rise_fraction=0.5)
        >>> [round(schedule(torch.tensor(float(n))).item(), 2) for n in (0, 2, 4, 5, 10)]
        [0.04, 0.44, 0.97, 0.98, 0.0]

    References: arXiv 1708.07120; the defaults are those of torch's OneCycleLR.
    """
    fraction = one_cycle_fraction(total_steps, rise_fraction)
    peak_step = _peak_step(total_steps, rise_fraction)

    def rate(count: Tensor) -> Tensor:
        low = torch.where(count <= peak_step, initial_lr_ratio, min_lr_ratio)
        return peak * (low + (1 - low) * fraction(count))

    return rate


def one_cycle_fraction(total_steps: int, rise_fraction: float = 0.3) -> Schedule:
    """How far a one-cycle schedule has risen, from 0 at its ends to 1 at the peak.

    Momentum falls by the same fraction of its range.
    """
    peak_step = _peak_step(total_steps, rise_fraction)

    def fraction(count: Tensor) -> Tensor:
        rise = 1 - _half_cosine((count / max(peak_step, 1e-9)).clamp(0, 1))
        fall = _half_cosine(_progress(count, peak_step, total_steps - 1))
        return torch.where(count <= peak_step, rise, fall)

    return fraction


def _peak_step(total_steps: int, rise_fraction: float) -> float:
    """The (fractional) count of updates at which a one-cycle schedule reaches its peak."""
    return rise_fraction * total_steps - 1
