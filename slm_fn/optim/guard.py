"""Guards of a whole optimizer: steps with NaN, infinity or a spike are skipped, fp16's loss scale adapts.

Invariant: a skipped step changes no bit of the parameters nor of the guarded state; only the guard's own counters move.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slm_fn.core import tree
from slm_fn.core.types import Params, Transform, Updates


class SkipState(NamedTuple):
    """The guarded transform's state, how many steps were skipped for a fault, and what each watch remembers.

    `in_a_row` counts the faults since the last step that was taken.
    """

    inner: Any
    skipped: Tensor  # () int64
    in_a_row: Tensor  # () int64
    watches: tuple[Any, ...] = ()


class Verdict(NamedTuple):
    """Of one gradient: whether to take the step, and whether skipping it counts as a fault of the run."""

    take: Tensor  # () bool
    fault: Tensor  # () bool


class Watch(NamedTuple):
    """Looks at the gradient's norm: `init: zero -> S`, `look: Norm x S -> Verdict x S`."""

    init: Callable[[Tensor], Any]
    look: Callable[[Tensor, Any], tuple[Verdict, Any]]


def guard(transform: Transform, *watches: Watch) -> Transform:
    """Take a step only if every watch says so; else leave parameters and inner state bitwise as they were.

    Example:
        >>> from slm_fn.optim.combine import scale
        >>> tx, w = guard(scale(-1.0), finite()), {"w": torch.ones(1)}
        >>> updates, state = tx.update({"w": torch.tensor([torch.nan])}, tx.init(w), w)
        >>> updates, state.skipped
        ({'w': tensor([-0.])}, tensor(1))
    """

    def init(params: Params) -> SkipState:
        zero = torch.zeros((), device=tree.leaves(params)[0].device)
        return SkipState(transform.init(params), zero.long(), zero.long(), tuple(watch.init(zero) for watch in watches))

    def update(updates: Updates, state: SkipState, params: Params) -> tuple[Updates, SkipState]:
        norm = tree.global_norm(updates)
        seen = [watch.look(norm, s) for watch, s in zip(watches, state.watches, strict=True)]
        take = torch.stack([verdict.take for verdict, _ in seen]).all()
        fault = torch.stack([verdict.fault for verdict, _ in seen]).any()
        new, inner = transform.update(updates, state.inner, params)
        # Minus zero is the only number that, added, changes no bit of any other.
        new = tree.map(lambda u: torch.where(take, u, -0.0), new)
        inner = tree.map(lambda now, before: torch.where(take, now, before), inner, state.inner)
        row = torch.where(take, 0, state.in_a_row + fault.long())
        return new, SkipState(inner, state.skipped + fault.long(), row, tuple(s for _, s in seen))

    return Transform(init, update)


def finite() -> Watch:
    """A gradient with NaN or infinity in it is a fault."""

    def look(norm: Tensor, state: Any) -> tuple[Verdict, Any]:
        ok = torch.isfinite(norm)
        return Verdict(ok, ~ok), state

    return Watch(lambda zero: (), look)


class SpikeState(NamedTuple):
    """The running norm of the gradients, over how many steps, and how many of them were spikes."""

    norm: Tensor  # () float32, not yet divided by the sum of its weights
    weight: Tensor  # () float32, that sum
    num_updates: Tensor  # () float32
    num_spikes: Tensor  # () int64


def spikes(factor: float, decay: float = 0.98, warmup_steps: int = 50) -> Watch:
    """A gradient whose norm is above `factor` times the running norm is a fault, once `warmup_steps` were seen.

    A spike enters the running norm as the limit it broke, so that a lasting rise is let through after a while.

    References: arXiv 2504.02507 (the same bounded average, there with clipping in place of skipping).
    """

    def look(norm: Tensor, state: SpikeState) -> tuple[Verdict, SpikeState]:
        limit = factor * state.norm / state.weight.clamp(min=1e-12)
        ok = torch.isfinite(norm)
        warm = state.num_updates >= warmup_steps
        spike = ok & warm & (norm > limit)
        keep = torch.where(ok, decay, 1.0)
        known = torch.where(ok, torch.where(spike, limit, norm), 0.0)
        state = SpikeState(
            torch.lerp(known, state.norm, keep),
            torch.lerp(torch.ones_like(norm), state.weight, keep),
            state.num_updates + ok,
            state.num_spikes + spike.long(),
        )
        return Verdict(~spike, spike), state

    return Watch(lambda zero: SpikeState(zero, zero, zero, zero.long()), look)


class ScaleState(NamedTuple):
    """By what the loss is multiplied before the backward pass, and how many finite steps in a row there were."""

    scale: Tensor  # () float32
    good: Tensor  # () float32


def loss_scale(
    init: float = 2.0**15, factor: float = 2.0, interval: int = 200, least: float = 1.0, most: float = 2.0**24
) -> Watch:
    """The scale falls by `factor` at every overflow, which skips the step, and rises after `interval` finite steps.

    An overflow is no fault of the run but how the scale is found, unless the scale is at its least already. Whoever
    makes the gradients reads `find(state, ScaleState).scale` before each step.

    References: arXiv 1710.03740.
    """

    def look(norm: Tensor, state: ScaleState) -> tuple[Verdict, ScaleState]:
        ok = torch.isfinite(norm)
        good = torch.where(ok, state.good + 1, 0.0)
        grown = torch.where(good >= interval, (state.scale * factor).clamp(max=most), state.scale)
        scale = torch.where(ok, grown, (state.scale / factor).clamp(min=least))
        return Verdict(ok, ~ok & (state.scale <= least)), ScaleState(scale, torch.where(good >= interval, 0.0, good))

    return Watch(lambda zero: ScaleState(zero + init, zero), look)
