"""Update directions computed element by element from gradients: Adam, Lion, SGD with momentum.

Invariant: a state's moments have the paths, shapes and dtypes of the parameters, so they shard and
vmap as the parameters do.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from slm_fn.core import tree
from slm_fn.core.types import Params, Transform, Updates


def zeros_like(params: Params) -> Params:
    """Returns zeros shaped like the parameters: an optimizer's moment before the first gradient."""
    zeros: Params = tree.map(torch.zeros_like, params)
    return zeros


def zero_count(params: Params) -> Tensor:
    """Returns a step counter at zero, a float32 scalar on the parameters' device.

    It is a float because the counter is multiplied, and a tensor because it must pass through vmap.
    """
    return torch.zeros((), device=tree.leaves(params)[0].device)


def bias_correction(decay: float | Tensor, count: Tensor) -> Tensor:
    """Returns `1 - decay^count`, the divisor that removes the bias of a running mean.

    It is computed as `-expm1(count log(decay))`: the power itself, in float32, has an error of 1e-5
    at a decay of 0.999.

    Args:
        decay: in [0, 1).
        count: number of updates so far, at least 1.

    References: arXiv 1412.6980, section 3.
    """
    if isinstance(decay, Tensor):
        return -torch.expm1(count * torch.log(decay))
    log_decay = math.log(decay) if decay else -math.inf
    return -torch.expm1(count * log_decay)


def axpy(
    x: Tensor,
    factor: float | Tensor,
    y: Tensor,
) -> Tensor:
    """Returns `x + factor * y`, in one kernel if the factor is a Python number."""
    if isinstance(factor, Tensor):
        return x + factor * y
    return torch.add(x, y, alpha=factor)


class AdamState(NamedTuple):
    """First and second moments, and the number of updates."""

    mu: Params
    nu: Params
    num_updates: Tensor  # () float32


def scale_by_adam(
    b1: float | Tensor = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
) -> Transform:
    """Adam: the mean gradient divided by the root of the mean squared gradient.

        mu = b1 mu + (1 - b1) g          mu_hat = mu / (1 - b1^n)
        nu = b2 nu + (1 - b2) g^2        nu_hat = nu / (1 - b2^n)
        update = mu_hat / (sqrt(nu_hat) + eps)

    Args:
        b1: decay of the first moment; a tensor if it changes from step to step.
        b2: decay of the second moment.
        eps: added to the denominator.

    References: arXiv 1412.6980.
    """

    def init(params: Params) -> AdamState:
        return AdamState(zeros_like(params), zeros_like(params), zero_count(params))

    def update(
        updates: Updates,
        state: AdamState,
        params: Params,
    ) -> tuple[Updates, AdamState]:
        def first_moment(mean: Tensor, gradient: Tensor) -> Tensor:
            return mean.lerp(gradient, 1 - b1)

        def second_moment(mean: Tensor, gradient: Tensor) -> Tensor:
            return (mean * b2).addcmul(gradient, gradient, value=1 - b2)

        num_updates = state.num_updates + 1
        mu = tree.map(first_moment, state.mu, updates)
        nu = tree.map(second_moment, state.nu, updates)
        # Both corrections go into the denominator, as factors of terms that are computed anyway.
        correction = bias_correction(b1, num_updates)
        root_factor = correction / bias_correction(b2, num_updates).sqrt()

        def direction(first: Tensor, second: Tensor) -> Tensor:
            return first / (second.sqrt() * root_factor + eps * correction)

        return tree.map(direction, mu, nu), AdamState(mu, nu, num_updates)

    return Transform(init, update)


class LionState(NamedTuple):
    """Momentum of the gradients."""

    mu: Params


def scale_by_lion(b1: float | Tensor = 0.9, b2: float = 0.99) -> Transform:
    """Lion: the sign of an average of momentum and gradient.

        update = sign(b1 mu + (1 - b1) g)
        mu     = b2 mu + (1 - b2) g

    Lion needs a learning rate 3 to 10 times lower than Adam's, and a higher weight decay.

    Args:
        b1: share of the momentum in the update.
        b2: decay of the momentum.

    References: arXiv 2302.06675.
    """

    def init(params: Params) -> LionState:
        return LionState(zeros_like(params))

    def update(
        updates: Updates,
        state: LionState,
        params: Params,
    ) -> tuple[Updates, LionState]:
        def direction(momentum: Tensor, gradient: Tensor) -> Tensor:
            return momentum.lerp(gradient, 1 - b1).sign_()

        def new_momentum(momentum: Tensor, gradient: Tensor) -> Tensor:
            return momentum.lerp(gradient, 1 - b2)

        signs = tree.map(direction, state.mu, updates)
        return signs, LionState(tree.map(new_momentum, state.mu, updates))

    return Transform(init, update)


class MomentumState(NamedTuple):
    """Velocity: the decayed sum of the gradients."""

    velocity: Params


def scale_by_momentum(momentum: float | Tensor = 0.9, nesterov: bool = False) -> Transform:
    """SGD momentum: the decayed sum of the gradients.

        v = momentum v + g
        update = v, or g + momentum v with `nesterov`

    Args:
        momentum: decay of the velocity, in [0, 1).
        nesterov: use the velocity one step ahead.

    References: Sutskever et al. 2013, "On the importance of initialization and momentum in deep
    learning".
    """

    def init(params: Params) -> MomentumState:
        return MomentumState(zeros_like(params))

    def update(
        updates: Updates,
        state: MomentumState,
        params: Params,
    ) -> tuple[Updates, MomentumState]:
        def advance(velocity: Tensor, gradient: Tensor) -> Tensor:
            return axpy(gradient, momentum, velocity)

        velocity = tree.map(advance, state.velocity, updates)
        direction = tree.map(advance, velocity, updates) if nesterov else velocity
        return direction, MomentumState(velocity)

    return Transform(init, update)
