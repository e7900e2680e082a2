"""Transforms used with any direction: clipping, weight decay, learning rate, parameter average.

Invariant: `update` returns a new state and new updates; its arguments are unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from slm_fn.core import tree
from slm_fn.core.types import Params, Path, PathPredicate, Transform, Updates
from slm_fn.optim.combine import stateless
from slm_fn.optim.directions import axpy, zero_count

S = TypeVar("S")


class ClipState(NamedTuple):
    """Norm before clipping and factor of the last update; counts of clipped and of all updates."""

    norm: Tensor  # () float32
    factor: Tensor  # () float32
    num_clipped: Tensor  # () float32
    num_updates: Tensor  # () float32


def clip_by_global_norm(max_norm: float) -> Transform:
    """Scales all updates by one factor so that their joint Euclidean norm is at most `max_norm`.

        update = u min(1, max_norm / |u|)

    Example:
        >>> clip, w = clip_by_global_norm(1.0), {"w": torch.tensor([3.0, 4.0])}
        >>> clip.update(w, clip.init(w), w)[0]
        {'w': tensor([0.6000, 0.8000])}

    References: arXiv 1211.5063.
    """

    def init(params: Params) -> ClipState:
        zero = zero_count(params)
        return ClipState(norm=zero, factor=zero + 1, num_clipped=zero, num_updates=zero)

    def update(
        updates: Updates,
        state: ClipState,
        params: Params,
    ) -> tuple[Updates, ClipState]:
        norm = tree.global_norm(updates)
        factor = (max_norm / norm.clamp(min=1e-12)).clamp(max=1.0)
        num_clipped = state.num_clipped + (factor < 1)
        new_state = ClipState(norm, factor, num_clipped, state.num_updates + 1)
        return tree.map(lambda u: u * factor, updates), new_state

    return Transform(init, update)


def add_decayed_weights(weight_decay: float | Tensor, where: PathPredicate) -> Transform:
    """Decoupled weight decay: adds `weight_decay * w` to the updates of the chosen leaves.

    Args:
        weight_decay: not multiplied by the learning rate yet; that comes later in the chain.
        where: chooses leaves by path.

    References: arXiv 1711.05101.
    """

    def decay(updates: Updates, params: Params) -> Updates:
        params_by_path = tree.named_leaves(params)
        chosen = {path for path in params_by_path if where(path)}

        def decay_leaf(path: Path, update: Tensor) -> Tensor:
            if path not in chosen:
                return update
            return axpy(update, weight_decay, params_by_path[path])

        return tree.map_with_path(updates, decay_leaf)

    return stateless(decay)


class ScheduleState(NamedTuple):
    """The number of updates scaled, and the learning rate of the last one."""

    num_updates: Tensor  # () float32
    rate: Tensor  # () float32


def scale_by_learning_rate(schedule: Callable[[Tensor], Tensor]) -> Transform:
    """Multiplies updates by `-schedule(count)`: from a direction of ascent to the step to add.

    Args:
        schedule: from the number of updates so far to the learning rate.
    """

    def init(params: Params) -> ScheduleState:
        return ScheduleState(zero_count(params), zero_count(params))

    def update(
        updates: Updates,
        state: ScheduleState,
        params: Params,
    ) -> tuple[Updates, ScheduleState]:
        rate = schedule(state.num_updates)
        step_size = -rate
        steps = tree.map(lambda u: step_size * u, updates)
        return steps, ScheduleState(state.num_updates + 1, rate)

    return Transform(init, update)


class EmaState(NamedTuple):
    """The exponential moving average of the parameters."""

    average: Any
    num_updates: Tensor  # () float32


def params_ema(decay: float) -> Transform:
    """Averages the parameters as they will be after this update; passes the updates on.

        d = min(decay, (1 + n) / (10 + n))
        average = d average + (1 - d) (w + u)

    It must be the last link of a chain. The decay warms up so that the average of a short run does
    not retain the initial weights.

    Args:
        decay: of the average, in [0, 1).
    """

    def init(params: Params) -> EmaState:
        return EmaState(tree.map(torch.clone, params), zero_count(params))

    def update(
        updates: Updates,
        state: EmaState,
        params: Params,
    ) -> tuple[Updates, EmaState]:
        num_updates = state.num_updates + 1
        step_decay = ((1 + num_updates) / (10 + num_updates)).clamp(max=decay)

        def update_average(
            average: Tensor,
            param: Tensor,
            update: Tensor,
        ) -> Tensor:
            return torch.lerp(param + update, average, step_decay.to(param.dtype))

        average = tree.map(update_average, state.average, params, updates)
        return updates, EmaState(average, num_updates)

    return Transform(init, update)


def find_state(opt_state: Any, kind: type[S]) -> S | None:
    """Returns the first state of a kind inside an optimizer state, or None.

    Example:
        >>> tx = params_ema(0.9)
        >>> find_state((tx.init({"w": torch.ones(1)}),), EmaState).average
        {'w': tensor([1.])}
    """
    if isinstance(opt_state, kind):
        return opt_state
    if isinstance(opt_state, tuple):
        for inner_state in opt_state:
            state = find_state(inner_state, kind)
            if state is not None:
                return state
    return None
