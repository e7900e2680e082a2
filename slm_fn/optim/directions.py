"""Directions from gradients, element by element: Adam, Lion, momentum.

Invariant: a state's moments have the params' paths, shapes and dtypes, so they shard and vmap as the params do.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from slm_fn.core import tree
from slm_fn.core.types import Params, Transform, Updates


def zeros(params: Params) -> Params:
    """A moment before the first gradient."""
    return tree.map(torch.zeros_like, params)


def counter(params: Params) -> Tensor:
    """A number of updates before the first; float32, for it is multiplied and must ride through vmap: ()."""
    return torch.zeros((), device=tree.leaves(params)[0].device)


def gathered(decay: float | Tensor, count: Tensor) -> Tensor:
    """`1 - decay^count`, by expm1: taken in float32 as it stands, it is off by 1e-5 at a decay of 0.999."""
    if isinstance(decay, Tensor):
        return -torch.expm1(count * torch.log(decay))
    return -torch.expm1(count * (math.log(decay) if decay else -math.inf))


def plus(x: Tensor, factor: float | Tensor, y: Tensor) -> Tensor:
    """`x + factor * y`, in one pass where the factor is a plain number."""
    return x + factor * y if isinstance(factor, Tensor) else torch.add(x, y, alpha=factor)


class AdamState(NamedTuple):
    """First and second moments, and the number of updates."""

    mu: Params
    nu: Params
    num_updates: Tensor  # () float32


def scale_by_adam(b1: float | Tensor = 0.9, b2: float = 0.95, eps: float = 1e-8) -> Transform:
    """`mu_hat / (sqrt(nu_hat) + eps)` with bias-corrected running moments.

    References: arXiv 1412.6980.
    """

    def init(params: Params) -> AdamState:
        return AdamState(zeros(params), zeros(params), counter(params))

    def update(updates: Updates, state: AdamState, params: Params) -> tuple[Updates, AdamState]:
        n = state.num_updates + 1
        mu = tree.map(lambda m, g: m.lerp(g, 1 - b1), state.mu, updates)
        nu = tree.map(lambda v, g: (v * b2).addcmul(g, g, value=1 - b2), state.nu, updates)
        grown = gathered(b1, n)
        # Both corrections in the divisor, where they ride on the root that has to be made anyway.
        slope = grown / gathered(b2, n).sqrt()
        return tree.map(lambda m, v: m / (v.sqrt() * slope + eps * grown), mu, nu), AdamState(mu, nu, n)

    return Transform(init, update)


class LionState(NamedTuple):
    """Momentum of the gradients."""

    mu: Params


def scale_by_lion(b1: float | Tensor = 0.9, b2: float = 0.99) -> Transform:
    """`sign(b1 mu + (1 - b1) g)`, the momentum kept by `b2`. Wants 3 to 10 times less rate, and more decay, than Adam.

    References: arXiv 2302.06675.
    """

    def update(updates: Updates, state: LionState, params: Params) -> tuple[Updates, LionState]:
        direction = tree.map(lambda m, g: m.lerp(g, 1 - b1).sign_(), state.mu, updates)
        return direction, LionState(tree.map(lambda m, g: m.lerp(g, 1 - b2), state.mu, updates))

    return Transform(lambda params: LionState(zeros(params)), update)


class MomentumState(NamedTuple):
    """Velocity: the decayed sum of the gradients."""

    velocity: Params


def scale_by_momentum(momentum: float | Tensor = 0.9, nesterov: bool = False) -> Transform:
    """`v = momentum v + g`; with `nesterov`, `g + momentum v`: where the gradient would be one step ahead.

    References: Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning".
    """

    def update(updates: Updates, state: MomentumState, params: Params) -> tuple[Updates, MomentumState]:
        velocity = tree.map(lambda v, g: plus(g, momentum, v), state.velocity, updates)
        ahead = tree.map(lambda v, g: plus(g, momentum, v), velocity, updates) if nesterov else velocity
        return ahead, MomentumState(velocity)

    return Transform(lambda params: MomentumState(zeros(params)), update)
