"""Adafactor: second moments stored as means over rows and columns.

Invariant: the last two axes are a matrix and all axes before them a batch. Matrices are chosen by
path; all other parameters take `scale_by_rms`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from slm_fn.core import tree
from slm_fn.core.types import Params, Transform, Updates
from slm_fn.optim.directions import zero_count, zeros_like

EPS = 1.1920929e-07
"""Machine epsilon of float32: the lower bound of the root of a second moment, as in
torch.optim.Adafactor."""


class FactoredState(NamedTuple):
    """Running means of the squared gradients over rows and over columns; the number of updates."""

    rows: Params  # (..., out, 1)
    cols: Params  # (..., 1, in)
    num_updates: Tensor  # () float32


def scale_by_factored_rms(
    decay: float = 0.8,
    clipping_threshold: float = 1.0,
    min_param_rms: float = 0.0,
    eps: float = EPS,
) -> Transform:
    """Adafactor for matrices: it stores `out + in` numbers for a matrix instead of `out in`.

        w = n^-decay, the weight of the n-th gradient
        rows = (1 - w) rows + w mean(g^2 over columns)
        cols = (1 - w) cols + w mean(g^2 over rows)
        update = g / sqrt(rows cols / mean(rows))

    The averaging window grows with the run, so no bias correction is needed.

    Args:
        decay: exponent of the weight of a new gradient.
        clipping_threshold: an update with a larger root mean square is scaled down to this value.
        min_param_rms: if positive, updates are multiplied by the root mean square of the matrix,
            or by this value if that is larger.
        eps: lower bound of the root of a second moment.

    References: arXiv 1804.04235.
    """

    def init(params: Params) -> FactoredState:
        def means(dim: int) -> Params:
            def zero_mean(param: Tensor) -> Tensor:
                return torch.zeros_like(param).mean(dim, keepdim=True)

            zero_means: Params = tree.map(zero_mean, params)
            return zero_means

        return FactoredState(means(-1), means(-2), zero_count(params))

    def update(
        updates: Updates,
        state: FactoredState,
        params: Params,
    ) -> tuple[Updates, FactoredState]:
        num_updates = state.num_updates + 1
        weight = num_updates**-decay

        def direction(
            rows: Tensor,
            cols: Tensor,
            gradient: Tensor,
            param: Tensor,
        ) -> Tensor:
            second_moment = rows * (cols / rows.mean(-2, keepdim=True).clamp(min=eps))
            scaled = gradient * second_moment.clamp(min=eps * eps).rsqrt()
            return _rescale(scaled, param, (-2, -1), clipping_threshold, min_param_rms)

        rows = _update_means(state.rows, updates, -1, weight)
        cols = _update_means(state.cols, updates, -2, weight)
        directions = tree.map(direction, rows, cols, updates, params)
        return directions, FactoredState(rows, cols, num_updates)

    return Transform(init, update)


def _update_means(means: Params, gradients: Params, dim: int, weight: Tensor) -> Params:
    """Running means over one dimension of the squared gradients, with a weight of the new ones."""

    def update_mean(mean: Tensor, gradient: Tensor) -> Tensor:
        return mean.lerp(_rms(gradient, (dim,)).square(), weight.to(gradient.dtype))

    new_means: Params = tree.map(update_mean, means, gradients)
    return new_means


class RmsState(NamedTuple):
    """Running mean of the squared gradients, and the number of updates."""

    nu: Params
    num_updates: Tensor  # () float32


def scale_by_rms(
    decay: float = 0.8,
    clipping_threshold: float = 1.0,
    min_param_rms: float = 0.0,
    eps: float = EPS,
) -> Transform:
    """Adafactor for vectors, and for stacks of vectors: the second moment is stored in full.

        w = n^-decay, the weight of the n-th gradient
        nu = (1 - w) nu + w g^2
        update = g / sqrt(nu)

    Args:
        decay: exponent of the weight of a new gradient.
        clipping_threshold: an update with a larger root mean square is scaled down to this value.
        min_param_rms: if positive, updates are multiplied by the root mean square of the vector,
            or by this value if that is larger.
        eps: lower bound of the root of a second moment.

    References: arXiv 1804.04235.
    """

    def init(params: Params) -> RmsState:
        return RmsState(zeros_like(params), zero_count(params))

    def update(
        updates: Updates,
        state: RmsState,
        params: Params,
    ) -> tuple[Updates, RmsState]:
        num_updates = state.num_updates + 1
        weight = num_updates**-decay

        def update_mean(mean: Tensor, gradient: Tensor) -> Tensor:
            return mean.lerp(gradient * gradient, weight.to(gradient.dtype))

        def direction(
            second_moment: Tensor,
            gradient: Tensor,
            param: Tensor,
        ) -> Tensor:
            scaled = gradient * second_moment.clamp(min=eps * eps).rsqrt()
            return _rescale(scaled, param, (-1,), clipping_threshold, min_param_rms)

        nu = tree.map(update_mean, state.nu, updates)
        return tree.map(direction, nu, updates, params), RmsState(nu, num_updates)

    return Transform(init, update)


def _rms(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The root mean square over some dimensions, which are kept with size 1."""
    size = 1
    for dim in dims:
        size *= x.shape[dim]
    norm: Tensor = torch.linalg.vector_norm(x, dim=dims, keepdim=True)
    inverse_root: float = size**-0.5
    return norm * inverse_root


def _rescale(
    update: Tensor,
    param: Tensor,
    dims: tuple[int, ...],
    clipping_threshold: float,
    min_param_rms: float,
) -> Tensor:
    """Clips the update by its root mean square over `dims` and scales it by the parameter's."""
    factor = 1 / (_rms(update, dims) / clipping_threshold).clamp(min=1.0)
    if min_param_rms:
        factor = factor * _rms(param, dims).clamp(min=min_param_rms)
    return update * factor


class AverageState(NamedTuple):
    """The running average of the updates."""

    mu: Params


def average_updates(decay: float | Tensor) -> Transform:
    """Momentum applied after the scaling: the optional first moment of Adafactor.

        mu = decay mu + (1 - decay) u
        update = mu

    References: arXiv 1804.04235.
    """

    def init(params: Params) -> AverageState:
        return AverageState(zeros_like(params))

    def update(
        updates: Updates,
        state: AverageState,
        params: Params,
    ) -> tuple[Updates, AverageState]:
        mu = tree.map(lambda mean, u: mean.lerp(u, 1 - decay), state.mu, updates)
        return mu, AverageState(mu)

    return Transform(init, update)
