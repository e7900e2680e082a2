"""What surrounds a direction: clipping, decoupled decay, the learning rate, averages of parameters.

Invariant: `update` returns a new state and new updates; what it was given is unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from slm_fn.core import tree
from slm_fn.core.types import Params, Transform, Updates, Where
from slm_fn.optim.combine import stateless
from slm_fn.optim.directions import counter, plus

S = TypeVar("S")


class ClipState(NamedTuple):
    """The norm before clipping and the factor of the last update; how many of how many were clipped."""

    norm: Tensor  # () float32
    factor: Tensor  # () float32
    num_clipped: Tensor  # () float32
    num_updates: Tensor  # () float32


def clip_by_global_norm(max_norm: float) -> Transform:
    """Scale all updates so that their joint norm is at most `max_norm`.

    Example:
        >>> clip, w = clip_by_global_norm(1.0), {"w": torch.tensor([3.0, 4.0])}
        >>> clip.update(w, clip.init(w), w)[0]
        {'w': tensor([0.6000, 0.8000])}

    References: arXiv 1211.5063.
    """

    def update(updates: Updates, state: ClipState, params: Params) -> tuple[Updates, ClipState]:
        norm = tree.global_norm(updates)
        factor = (max_norm / norm.clamp(min=1e-12)).clamp(max=1.0)
        state = ClipState(norm, factor, state.num_clipped + (factor < 1), state.num_updates + 1)
        return tree.map(lambda u: u * factor, updates), state

    def init(params: Params) -> ClipState:
        zero = counter(params)
        return ClipState(zero, zero + 1, zero, zero)

    return Transform(init, update)


def add_decayed_weights(weight_decay: float | Tensor, where: Where) -> Transform:
    """Add `weight_decay * w` to the updates of the chosen leaves: decoupled decay.

    References: arXiv 1711.05101.
    """

    def decay(updates: Updates, params: Params) -> Updates:
        chosen = {path for path in tree.paths(params) if where(path)}
        flat = tree.paths(params)
        return tree.update_in(updates, lambda path, u: plus(u, weight_decay, flat[path]) if path in chosen else u)

    return stateless(decay)


class ScheduleState(NamedTuple):
    """How many updates have been scaled, and the rate of the last one."""

    num_updates: Tensor  # () float32
    rate: Tensor  # () float32


def scale_by_learning_rate(schedule: Callable[[Tensor], Tensor]) -> Transform:
    """Multiply by `-schedule(count)`: from a direction of ascent to the step that is added."""

    def update(updates: Updates, state: ScheduleState, params: Params) -> tuple[Updates, ScheduleState]:
        rate = schedule(state.num_updates)
        step = -rate
        return tree.map(lambda u: step * u, updates), ScheduleState(state.num_updates + 1, rate)

    return Transform(lambda params: ScheduleState(counter(params), counter(params)), update)


class EmaState(NamedTuple):
    """The running average of the parameters."""

    average: Any
    num_updates: Tensor  # () float32


def params_ema(decay: float) -> Transform:
    """Average the parameters as they will be after this update. The last link of a chain; passes updates on.

    The decay warms up as `min(decay, (1 + n) / (10 + n))`, so that a short run does not remember its first weights.
    """

    def update(updates: Updates, state: EmaState, params: Params) -> tuple[Updates, EmaState]:
        n = state.num_updates + 1
        keep = ((1 + n) / (10 + n)).clamp(max=decay)
        average = tree.map(lambda a, p, u: torch.lerp(p + u, a, keep.to(p.dtype)), state.average, params, updates)
        return updates, EmaState(average, n)

    return Transform(lambda params: EmaState(tree.map(torch.clone, params), counter(params)), update)


def find(opt_state: Any, kind: type[S]) -> S | None:
    """The first state of a kind in an optimizer state, or None: `find(state, EmaState).average`."""
    if isinstance(opt_state, kind):
        return opt_state
    if isinstance(opt_state, tuple):
        return next((found for part in opt_state if (found := find(part, kind)) is not None), None)
    return None
