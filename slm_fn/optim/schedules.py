"""Learning-rate schedules: pure functions from the number of updates to a rate.

Invariant: the argument is a tensor and so is the result, so a schedule traces and vmaps. A peak may be a tensor too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Schedule = Callable[[Tensor], Tensor]


def _part(count: Tensor, first: int | float, last: int | float) -> Tensor:
    """How much of the way from one count to another is behind, 0 to 1."""
    return ((count - first) / max(1.0, last - first)).clamp(0, 1)


def _half_cosine(part: Tensor) -> Tensor:
    """From 1 down to 0, level at both ends."""
    return 0.5 * (1 + torch.cos(math.pi * part))


def _warm(count: Tensor, warmup_steps: int) -> Tensor:
    """`1 / warmup_steps` at the first update, 1 at the last of the warmup and after it."""
    return ((count + 1) / max(1, warmup_steps)).clamp(max=1)


def constant(peak: float | Tensor, warmup_steps: int = 0) -> Schedule:
    """Linear from `peak / warmup_steps` to `peak`, then the same rate for ever."""
    return lambda count: peak * _warm(count, warmup_steps)


def warmup_linear(peak: float | Tensor, warmup_steps: int, total_steps: int, floor: float = 0.0) -> Schedule:
    """Linear up to `peak`, then linear down to `floor * peak` at `total_steps`.

    Example:
        >>> schedule = warmup_linear(1.0, 2, 10, floor=0.2)
        >>> [round(schedule(torch.tensor(float(n))).item(), 2) for n in (0, 1, 2, 6, 10)]
        [0.5, 1.0, 1.0, 0.6, 0.2]
    """

    def rate(count: Tensor) -> Tensor:
        fall = floor + (1 - floor) * (1 - _part(count, warmup_steps, total_steps))
        return peak * torch.minimum(_warm(count, warmup_steps), fall)

    return rate


def warmup_cosine(peak: float | Tensor, warmup_steps: int, total_steps: int, floor: float = 0.0) -> Schedule:
    """Linear from `peak / warmup_steps` to `peak`, then half a cosine down to `floor * peak` at `total_steps`.

    Example:
        >>> schedule = warmup_cosine(1.0, 2, 10)
        >>> [round(schedule(torch.tensor(float(n))).item(), 2) for n in (0, 1, 2, 6, 10)]
        [0.5, 1.0, 1.0, 0.5, 0.0]

    References: arXiv 1608.03983.
    """

    def rate(count: Tensor) -> Tensor:
        fall = floor + (1 - floor) * _half_cosine(_part(count, warmup_steps, total_steps))
        return peak * torch.minimum(_warm(count, warmup_steps), fall)

    return rate


def warmup_stable_decay(
    peak: float | Tensor,
    warmup_steps: int,
    total_steps: int,
    decay_fraction: float = 0.4,
    floor: float = 0.0,
    shape: Literal["linear", "sqrt"] = "linear",
) -> Schedule:
    """Linear up, flat, and down to `floor * peak` over the last `decay_fraction` of the run (WSD).

    Args:
        shape: of the decay: a straight line, or one minus the root of the way gone, which falls early.

    Example:
        >>> schedule = warmup_stable_decay(1.0, 2, 10, decay_fraction=0.5)
        >>> [round(schedule(torch.tensor(float(n))).item(), 2) for n in (0, 1, 5, 7, 10)]
        [0.5, 1.0, 1.0, 0.6, 0.0]

    References: arXiv 2404.06395, 2405.18392 (both shapes).
    """

    def rate(count: Tensor) -> Tensor:
        left = ((total_steps - count) / max(1.0, decay_fraction * total_steps)).clamp(0, 1)
        fall = left if shape == "linear" else 1 - (1 - left).sqrt()
        return peak * torch.minimum(_warm(count, warmup_steps), floor + (1 - floor) * fall)

    return rate


def one_cycle(
    peak: float | Tensor, total_steps: int, rise_fraction: float = 0.3, start: float = 0.04, floor: float = 4e-6
) -> Schedule:
    """Half a cosine up from `start * peak`, then a longer one down to `floor * peak` at the last update.

    Momentum goes the other way: `one_cycle_dip`.

    Example:
        >>> schedule = one_cycle(1.0, 11, rise_fraction=0.5)
        >>> [round(schedule(torch.tensor(float(n))).item(), 2) for n in (0, 2, 4, 5, 10)]
        [0.04, 0.44, 0.97, 0.98, 0.0]

    References: arXiv 1708.07120; the defaults are those of torch's OneCycleLR.
    """
    dip = one_cycle_dip(total_steps, rise_fraction)

    def rate(count: Tensor) -> Tensor:
        low = torch.where(count <= _top(total_steps, rise_fraction), start, floor)
        return peak * (low + (1 - low) * dip(count))

    return rate


def one_cycle_dip(total_steps: int, rise_fraction: float = 0.3) -> Schedule:
    """How near the peak a `one_cycle` is, 0 to 1: by so much of the way its momentum is to fall."""
    top = _top(total_steps, rise_fraction)

    def dip(count: Tensor) -> Tensor:
        up = 1 - _half_cosine((count / max(top, 1e-9)).clamp(0, 1))
        return torch.where(count <= top, up, _half_cosine(_part(count, top, total_steps - 1)))

    return dip


def _top(total_steps: int, rise_fraction: float) -> float:
    return rise_fraction * total_steps - 1
