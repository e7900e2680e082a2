"""Learning-rate schedules: pure functions from the number of updates to a rate.

Invariant: the argument is a tensor and so is the result, so a schedule traces and vmaps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Schedule = Callable[[Tensor], Tensor]


def constant(peak: float) -> Schedule:
    """The same rate for ever."""
    return lambda count: torch.full_like(count, peak)


def warmup_cosine(peak: float, warmup_steps: int, total_steps: int, floor: float = 0.0) -> Schedule:
    """Linear from `peak / warmup_steps` to `peak`, then half a cosine down to `floor * peak` at `total_steps`.

    Example:
        >>> schedule = warmup_cosine(1.0, 2, 10)
        >>> [round(schedule(torch.tensor(float(n))).item(), 2) for n in (0, 1, 2, 6, 10)]
        [0.5, 1.0, 1.0, 0.5, 0.0]

    References: arXiv 1608.03983.
    """

    def rate(count: Tensor) -> Tensor:
        part = ((count - warmup_steps) / max(1, total_steps - warmup_steps)).clamp(0, 1)
        fall = floor + (1 - floor) * 0.5 * (1 + torch.cos(math.pi * part))
        return peak * torch.minimum((count + 1) / max(1, warmup_steps), fall)

    return rate


def warmup_stable_decay(
    peak: float, warmup_steps: int, total_steps: int, decay_fraction: float = 0.4, floor: float = 0.0
) -> Schedule:
    """Linear up, flat, and linear down to `floor * peak` over the last `decay_fraction` of the run (WSD).

    Example:
        >>> schedule = warmup_stable_decay(1.0, 2, 10, decay_fraction=0.5)
        >>> [round(schedule(torch.tensor(float(n))).item(), 2) for n in (0, 1, 5, 7, 10)]
        [0.5, 1.0, 1.0, 0.6, 0.0]

    References: arXiv 2404.06395, 2405.18392.
    """

    def rate(count: Tensor) -> Tensor:
        fall = ((total_steps - count) / max(1.0, decay_fraction * total_steps)).clamp(0, 1)
        return peak * torch.minimum((count + 1) / max(1, warmup_steps), floor + (1 - floor) * fall)

    return rate
