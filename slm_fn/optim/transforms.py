"""Gradient transformations: clipping, Adam, Muon, decoupled decay, schedules, averages of parameters.

Invariant: `update` returns a new state and new updates; what it was given is unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from slm_fn.core import tree
from slm_fn.core.types import Params, Transform, Updates, Where
from slm_fn.optim.combine import stateless

S = TypeVar("S")


def _zeros(params: Params) -> Params:
    return tree.map(torch.zeros_like, params)


def _counter(params: Params) -> Tensor:
    return torch.zeros((), device=tree.leaves(params)[0].device)


def clip_by_global_norm(max_norm: float) -> Transform:
    """Scale all updates so that their joint norm is at most `max_norm`.

    Example:
        >>> clip_by_global_norm(1.0).update({"w": torch.tensor([3.0, 4.0])}, (), {})[0]
        {'w': tensor([0.6000, 0.8000])}

    References: arXiv 1211.5063.
    """

    def clip(updates: Updates, params: Params) -> Updates:
        factor = (max_norm / tree.global_norm(updates).clamp(min=1e-12)).clamp(max=1.0)
        return tree.map(lambda u: u * factor, updates)

    return stateless(clip)


def _gathered(decay: float, count: Tensor) -> Tensor:
    """`1 - decay^count`, by expm1: taken in float32 as it stands, it is off by 1e-5 at a decay of 0.999."""
    return -torch.expm1(count * (math.log(decay) if decay else -math.inf))


class AdamState(NamedTuple):
    """First and second moments, and the number of updates."""

    mu: Params
    nu: Params
    num_updates: Tensor  # () float32


def scale_by_adam(b1: float = 0.9, b2: float = 0.95, eps: float = 1e-8) -> Transform:
    """`mu_hat / (sqrt(nu_hat) + eps)` with bias-corrected running moments.

    References: arXiv 1412.6980.
    """

    def init(params: Params) -> AdamState:
        return AdamState(_zeros(params), _zeros(params), _counter(params))

    def update(updates: Updates, state: AdamState, params: Params) -> tuple[Updates, AdamState]:
        n = state.num_updates + 1
        mu = tree.map(lambda m, g: m.lerp(g, 1 - b1), state.mu, updates)
        nu = tree.map(lambda v, g: (v * b2).addcmul(g, g, value=1 - b2), state.nu, updates)
        scale, root = 1 / _gathered(b1, n), _gathered(b2, n).sqrt()
        return tree.map(lambda m, v: (m * scale) / (v.sqrt() / root + eps), mu, nu), AdamState(mu, nu, n)

    return Transform(init, update)


class MuonState(NamedTuple):
    """Momentum of the gradients."""

    mu: Params


def orthogonalize(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Push the singular values of `(..., out, in)` matrices towards 1 by a quintic Newton-Schulz iteration.

    Batched over all leading axes: the stacked layers of a block matrix are one product. Five steps bring the
    values into about [0.7, 1.2], which is as good as exact for an optimizer.

    Example:
        >>> g = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
        >>> bool((torch.linalg.svdvals(orthogonalize(g)) - 1).abs().max() < 0.4)
        True

    References: Jordan et al. 2024, "Muon" (kellerjordan.github.io/posts/muon); coefficients from there.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = (matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)).to(dtype)
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(matrices.dtype)


def scale_by_muon(momentum: float = 0.95, steps: int = 5, dtype: torch.dtype = torch.float32) -> Transform:
    """Orthogonalised Nesterov momentum, scaled by `0.2 sqrt(max(out, in))` so that Adam's learning rates carry over.

    For block matrices only: choose them by path with `partition`.

    References: Jordan et al. 2024; the scale: arXiv 2502.16982.
    """

    def update(updates: Updates, state: MuonState, params: Params) -> tuple[Updates, MuonState]:
        mu = tree.map(lambda m, g: m.lerp(g, 1 - momentum), state.mu, updates)

        def direction(m: Tensor, g: Tensor) -> Tensor:
            return orthogonalize(g.lerp(m, momentum), steps, dtype) * (0.2 * max(g.shape[-2:]) ** 0.5)

        return tree.map(direction, mu, updates), MuonState(mu)

    return Transform(lambda params: MuonState(_zeros(params)), update)


def add_decayed_weights(weight_decay: float, where: Where) -> Transform:
    """Add `weight_decay * w` to the updates of the chosen leaves: decoupled decay.

    References: arXiv 1711.05101.
    """

    def decay(updates: Updates, params: Params) -> Updates:
        chosen = {path for path in tree.paths(params) if where(path)}
        flat = tree.paths(params)
        return tree.update_in(updates, lambda path, u: u + weight_decay * flat[path] if path in chosen else u)

    return stateless(decay)


class ScheduleState(NamedTuple):
    """How many updates have been scaled, and the rate of the last one."""

    num_updates: Tensor  # () float32
    rate: Tensor  # () float32


def scale_by_learning_rate(schedule: Callable[[Tensor], Tensor]) -> Transform:
    """Multiply by `-schedule(count)`: from a direction of ascent to the step that is added."""

    def update(updates: Updates, state: ScheduleState, params: Params) -> tuple[Updates, ScheduleState]:
        rate = schedule(state.num_updates)
        return tree.map(lambda u: -rate * u, updates), ScheduleState(state.num_updates + 1, rate)

    return Transform(lambda params: ScheduleState(_counter(params), _counter(params)), update)


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

    return Transform(lambda params: EmaState(tree.map(torch.clone, params), _counter(params)), update)


def find(opt_state: Any, kind: type[S]) -> S | None:
    """The first state of a kind in an optimizer state, or None: `find(state, EmaState).average`."""
    if isinstance(opt_state, kind):
        return opt_state
    if isinstance(opt_state, tuple):
        return next((found for part in opt_state if (found := find(part, kind)) is not None), None)
    return None
