"""The training step: an optimizer lifts value_and_grad to `(state, batch) -> (state, metrics)`.

Invariant: a `Step` leaves the old state as it was; only a `DonatingStep` writes over it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from slm_fn.core import jit, tree
from slm_fn.core.types import (
    DonatedState,
    DonatingStep,
    Metrics,
    Params,
    Step,
    TrainState,
    Transform,
    ValueAndGrad,
)
from slm_fn.optim.combine import apply_updates
from slm_fn.optim.guard import LossScaleState
from slm_fn.optim.transforms import EmaState, find_state

ApplyGradients = Callable[[TrainState, Params], tuple[TrainState, Tensor]]
"""`(state, grads) -> (new state, gradient norm)`."""


def init_state(params: Params, tx: Transform) -> TrainState:
    """Returns the state before the first step.

    No two leaves are the same tensor: a step compiled for shared leaves would be compiled again.

    Args:
        params: the parameters to start from.
        tx: the optimizer.
    """
    device = tree.leaves(params)[0].device
    opt_state = tree.map(torch.clone, tx.init(params))
    return TrainState(params, opt_state, torch.zeros((), dtype=torch.long, device=device))


def eval_params(state: TrainState) -> Params:
    """Returns the parameters to evaluate: the averaged ones if the optimizer keeps an average."""
    ema = find_state(state.opt_state, EmaState)
    return state.params if ema is None else ema.average


def step_with(tx: Transform) -> Callable[[ValueAndGrad], Step]:
    """Lifts `VG -> Step`. Metrics: loss, grad_norm, and all that the loss reports.

    Args:
        tx: the optimizer.

    Example:
        >>> from slm_fn.core.grads import value_and_grad
        >>> from slm_fn.optim.transforms import scale_by_learning_rate
        >>> from slm_fn.optim.schedules import constant
        >>> def loss(params, batch):
        ...     return (params["w"] - batch).square().sum(), {"weight": torch.ones(())}
        >>> tx = scale_by_learning_rate(constant(0.5))
        >>> step = step_with(tx)(value_and_grad(loss))
        >>> state, metrics = step(init_state({"w": torch.zeros(1)}, tx), torch.ones(1))
        >>> state.params["w"].item()
        1.0
    """
    apply_gradients = _apply_gradients_with(tx)

    def lift(vg: ValueAndGrad) -> Step:
        def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
            (loss, aux), grads = _loss_and_grads(vg, state, batch)
            new_state, grad_norm = apply_gradients(state, grads)
            return new_state, {"loss": loss, "grad_norm": grad_norm, **aux}

        return step

    return lift


def donating_step_with(
    tx: Transform, engine: jit.Engine = "eager"
) -> Callable[[ValueAndGrad], DonatingStep]:
    """Lifts `VG -> DonatingStep`: `step_with` whose new state is written over the old one.

    Args:
        tx: the optimizer.
        engine: runs what follows the gradient: the norm, the optimizer and the new parameters, a
            chain of many small operations.
    """
    apply_gradients = jit.jit(engine)(jit.donate(_apply_gradients_with(tx)))

    def lift(vg: ValueAndGrad) -> DonatingStep:
        def step(state: DonatedState, batch: Any) -> tuple[DonatedState, Metrics]:
            (loss, aux), grads = _loss_and_grads(vg, state, batch)
            new_state, grad_norm = apply_gradients(state, grads)
            return new_state, {"loss": loss, "grad_norm": grad_norm, **aux}

        return step

    return lift


def _apply_gradients_with(tx: Transform) -> ApplyGradients:
    def apply_gradients(state: TrainState, grads: Params) -> tuple[TrainState, Tensor]:
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = apply_updates(state.params, updates)
        return TrainState(params, opt_state, state.step + 1), tree.global_norm(grads)

    return apply_gradients


def _loss_and_grads(
    vg: ValueAndGrad, state: TrainState, batch: Any
) -> tuple[tuple[Tensor, Metrics], Params]:
    """The loss and its gradients; in fp16 the loss is scaled as the optimizer says."""
    loss_scale = find_state(state.opt_state, LossScaleState)
    if loss_scale is None:
        return vg(state.params, batch)
    return vg(state.params, batch, loss_scale.scale)
