"""Skips optimizer steps with NaN, infinity or a gradient spike, and adapts the float16 loss scale.

Invariant: a skipped step changes no bit of the parameters or of the guarded state; only the
counters and the checks' own states change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slm_fn.core import tree
from slm_fn.core.types import Params, Transform, Updates


class SkipState(NamedTuple):
    """State of the guarded transform, counts of skipped steps, and the state of every check.

    `skipped` and `in_a_row` count faults: all of them, and those since the last step taken.
    """

    inner: Any
    skipped: Tensor  # () int64
    in_a_row: Tensor  # () int64
    watches: tuple[Any, ...] = ()


class CheckResult(NamedTuple):
    """Whether to take a step, and whether skipping it counts as a fault of the run."""

    should_step: Tensor  # () bool
    is_fault: Tensor  # () bool


class GradientCheck(NamedTuple):
    """A check of the gradient norm: `init: zero -> S`, `evaluate: norm x S -> CheckResult x S`."""

    init: Callable[[Tensor], Any]
    evaluate: Callable[[Tensor, Any], tuple[CheckResult, Any]]


def skip_steps(transform: Transform, *checks: GradientCheck) -> Transform:
    """Applies a Transform only if every check passes; otherwise the step is skipped.

    A skipped step leaves the parameters and the inner state bitwise unchanged.

    Example:
        >>> from slm_fn.optim.combine import scale
        >>> tx, w = skip_steps(scale(-1.0), check_finite()), {"w": torch.ones(1)}
        >>> updates, state = tx.update({"w": torch.tensor([torch.nan])}, tx.init(w), w)
        >>> updates, state.skipped
        ({'w': tensor([-0.])}, tensor(1))
    """

    def init(params: Params) -> SkipState:
        zero = torch.zeros((), device=tree.leaves(params)[0].device)
        check_states = tuple(check.init(zero) for check in checks)
        return SkipState(transform.init(params), zero.long(), zero.long(), check_states)

    def update(
        updates: Updates,
        state: SkipState,
        params: Params,
    ) -> tuple[Updates, SkipState]:
        norm = tree.global_norm(updates)
        results = []
        check_states = []
        for check, check_state in zip(checks, state.watches, strict=True):
            result, new_check_state = check.evaluate(norm, check_state)
            results.append(result)
            check_states.append(new_check_state)
        should_step = torch.stack([result.should_step for result in results]).all()
        is_fault = torch.stack([result.is_fault for result in results]).any()

        new_updates, inner = transform.update(updates, state.inner, params)
        # Minus zero is the only number that changes no bit of any number it is added to.
        new_updates = tree.map(lambda u: torch.where(should_step, u, -0.0), new_updates)
        inner = tree.map(lambda new, old: torch.where(should_step, new, old), inner, state.inner)
        skipped = state.skipped + is_fault.long()
        in_a_row = torch.where(should_step, 0, state.in_a_row + is_fault.long())
        return new_updates, SkipState(inner, skipped, in_a_row, tuple(check_states))

    return Transform(init, update)


def check_finite() -> GradientCheck:
    """A gradient that contains NaN or infinity is a fault."""

    def init(zero: Tensor) -> tuple[()]:
        return ()

    def evaluate(norm: Tensor, state: tuple[()]) -> tuple[CheckResult, tuple[()]]:
        is_finite = torch.isfinite(norm)
        return CheckResult(is_finite, ~is_finite), state

    return GradientCheck(init, evaluate)


class SpikeState(NamedTuple):
    """The running gradient norm, the number of steps in it, and the number of spikes."""

    norm: Tensor  # () float32, weighted sum, not yet divided by the sum of its weights
    weight: Tensor  # () float32, the sum of the weights
    num_updates: Tensor  # () float32
    num_spikes: Tensor  # () int64


def check_spikes(
    factor: float,
    decay: float = 0.98,
    warmup_steps: int = 50,
) -> GradientCheck:
    """A gradient norm above `factor` times the running norm is a fault.

    A spike enters the running norm as the limit it exceeded, so that gradients that stay larger are
    accepted after some steps.

    Args:
        factor: above 1.
        decay: of the running norm.
        warmup_steps: number of finite gradients before the first spike can be detected.

    References: arXiv 2504.02507 (the same bounded average, used for clipping instead of skipping).
    """

    def init(zero: Tensor) -> SpikeState:
        return SpikeState(zero, zero, zero, zero.long())

    def evaluate(norm: Tensor, state: SpikeState) -> tuple[CheckResult, SpikeState]:
        limit = factor * state.norm / state.weight.clamp(min=1e-12)
        is_finite = torch.isfinite(norm)
        is_warm = state.num_updates >= warmup_steps
        is_spike = is_finite & is_warm & (norm > limit)
        # A gradient that is not finite leaves the running norm unchanged.
        step_decay = torch.where(is_finite, decay, 1.0)
        bounded_norm = torch.where(is_finite, torch.where(is_spike, limit, norm), 0.0)
        new_state = SpikeState(
            norm=torch.lerp(bounded_norm, state.norm, step_decay),
            weight=torch.lerp(torch.ones_like(norm), state.weight, step_decay),
            num_updates=state.num_updates + is_finite,
            num_spikes=state.num_spikes + is_spike.long(),
        )
        return CheckResult(~is_spike, is_spike), new_state

    return GradientCheck(init, evaluate)


class LossScaleState(NamedTuple):
    """The factor of the loss before the backward pass; the number of finite steps in a row."""

    scale: Tensor  # () float32
    good: Tensor  # () float32


def adapt_loss_scale(
    initial_scale: float = 2.0**15,
    factor: float = 2.0,
    growth_interval: int = 200,
    min_scale: float = 1.0,
    max_scale: float = 2.0**24,
) -> GradientCheck:
    """Dynamic loss scaling for float16: lower after an overflow, higher after finite steps.

    An overflow divides the scale by `factor` and skips the step. It is not a fault, since this is
    how the scale is found, unless the scale is at its minimum already. The caller that computes
    gradients reads `find_state(state, LossScaleState).scale` before each step.

    Args:
        initial_scale: the scale of the first step.
        factor: by which the scale grows and shrinks.
        growth_interval: number of finite steps in a row after which the scale grows.
        min_scale: lower bound of the scale.
        max_scale: upper bound of the scale.

    References: arXiv 1710.03740.
    """

    def init(zero: Tensor) -> LossScaleState:
        return LossScaleState(zero + initial_scale, zero)

    def evaluate(norm: Tensor, state: LossScaleState) -> tuple[CheckResult, LossScaleState]:
        is_finite = torch.isfinite(norm)
        num_finite = torch.where(is_finite, state.good + 1, 0.0)
        should_grow = num_finite >= growth_interval
        higher = torch.where(should_grow, (state.scale * factor).clamp(max=max_scale), state.scale)
        lower = (state.scale / factor).clamp(min=min_scale)
        scale = torch.where(is_finite, higher, lower)
        is_fault = ~is_finite & (state.scale <= min_scale)
        new_state = LossScaleState(scale, torch.where(should_grow, 0.0, num_finite))
        return CheckResult(is_finite, is_fault), new_state

    return GradientCheck(init, evaluate)
