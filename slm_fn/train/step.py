"""The training step: an optimizer lifts value_and_grad to `TrainState x Batch -> TrainState, Metrics`.

Invariant: the old state is untouched; a step is a function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from slm_fn.core import tree
from slm_fn.core.types import Metrics, Params, Step, TrainState, Transform, ValueAndGrad
from slm_fn.optim.combine import apply_updates
from slm_fn.optim.guard import ScaleState
from slm_fn.optim.transforms import find


def init_state(params: Params, tx: Transform) -> TrainState:
    """The state before the first step. No two leaves are one tensor: a step compiled for that would be so once only."""
    device = tree.leaves(params)[0].device
    return TrainState(params, tree.map(torch.clone, tx.init(params)), torch.zeros((), dtype=torch.long, device=device))


def step_with(tx: Transform, jit: Callable[[Any], Any] = lambda f: f) -> Callable[[ValueAndGrad], Step]:
    """Lift `VG -> Step`. Metrics: loss, grad_norm, and all that the loss reports.

    Args:
        jit: lifts what follows the gradient (norm, optimizer, new parameters), a chain of many small operations.

    Example:
        >>> from slm_fn.core.grads import value_and_grad
        >>> from slm_fn.optim.transforms import scale_by_learning_rate
        >>> from slm_fn.optim.schedules import constant
        >>> loss = lambda params, batch: ((params["w"] - batch).square().sum(), {"weight": torch.ones(())})
        >>> tx = scale_by_learning_rate(constant(0.5))
        >>> state, metrics = step_with(tx)(value_and_grad(loss))(init_state({"w": torch.zeros(1)}, tx), torch.ones(1))
        >>> state.params["w"].item()
        1.0
    """

    def finish(state: TrainState, grads: Params) -> tuple[TrainState, Tensor]:
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        after = TrainState(apply_updates(state.params, updates), opt_state, state.step + 1)
        return after, tree.global_norm(grads)

    finish = jit(finish)

    def lift(vg: ValueAndGrad) -> Step:
        def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
            scaling = find(state.opt_state, ScaleState)
            (value, aux), grads = vg(state.params, batch, *([] if scaling is None else [scaling.scale]))
            after, norm = finish(state, grads)
            return after, {"loss": value, "grad_norm": norm, **aux}

        return step

    return lift
