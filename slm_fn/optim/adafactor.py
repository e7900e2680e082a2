"""Adafactor: second moments kept as the means of rows and columns.

Invariant: the last two axes are a matrix and all before them a batch; choose matrices by path, the rest takes
`scale_by_rms`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from slm_fn.core import tree
from slm_fn.core.types import Params, Transform, Updates
from slm_fn.optim.directions import counter, zeros

EPS = 1.1920929e-07
"""float32's: the least root of a second moment, as in torch.optim.Adafactor."""


class FactoredState(NamedTuple):
    """Running means of the squared gradients over each row and each column, and the number of updates."""

    rows: Params  # (..., out, 1)
    cols: Params  # (..., 1, in)
    num_updates: Tensor  # () float32


def scale_by_factored_rms(decay: float = 0.8, clip: float = 1.0, relative: float = 0.0, eps: float = EPS) -> Transform:
    """`g / sqrt(rows cols / mean(rows))` for trees of matrices: `out + in` numbers remembered instead of `out in`.

    The n-th gradient weighs `n^-decay`, so the memory grows as the run does and nothing is biased.

    Args:
        clip: a matrix's update of a larger root mean square is scaled down to it.
        relative: above 0, steps are in proportion to the root mean square of the matrix, taken as no less than this.

    References: arXiv 1804.04235.
    """

    def init(params: Params) -> FactoredState:
        def means(dim: int) -> Params:
            return tree.map(lambda p: torch.zeros_like(p).mean(dim, keepdim=True), params)

        return FactoredState(means(-1), means(-2), counter(params))

    def update(updates: Updates, state: FactoredState, params: Params) -> tuple[Updates, FactoredState]:
        n = state.num_updates + 1
        weight = n**-decay

        def mean(dim: int, before: Params) -> Params:
            return tree.map(lambda m, g: m.lerp(_rms(g, (dim,)).square(), weight.to(g.dtype)), before, updates)

        rows, cols = mean(-1, state.rows), mean(-2, state.cols)

        def direction(r: Tensor, c: Tensor, g: Tensor, p: Tensor) -> Tensor:
            nu = r * (c / r.mean(-2, keepdim=True).clamp(min=eps))
            return _bounded(g * nu.clamp(min=eps * eps).rsqrt(), p, (-2, -1), clip, relative)

        return tree.map(direction, rows, cols, updates, params), FactoredState(rows, cols, n)

    return Transform(init, update)


class RmsState(NamedTuple):
    """Running mean of the squared gradients, and the number of updates."""

    nu: Params
    num_updates: Tensor  # () float32


def scale_by_rms(decay: float = 0.8, clip: float = 1.0, relative: float = 0.0, eps: float = EPS) -> Transform:
    """Adafactor for what is no matrix: vectors, and stacks of them, with the whole second moment.

    References: arXiv 1804.04235.
    """

    def update(updates: Updates, state: RmsState, params: Params) -> tuple[Updates, RmsState]:
        n = state.num_updates + 1
        weight = n**-decay
        nu = tree.map(lambda v, g: v.lerp(g * g, weight.to(g.dtype)), state.nu, updates)

        def direction(v: Tensor, g: Tensor, p: Tensor) -> Tensor:
            return _bounded(g * v.clamp(min=eps * eps).rsqrt(), p, (-1,), clip, relative)

        return tree.map(direction, nu, updates, params), RmsState(nu, n)

    return Transform(lambda params: RmsState(zeros(params), counter(params)), update)


def _rms(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    size = 1
    for dim in dims:
        size *= x.shape[dim]
    return torch.linalg.vector_norm(x, dim=dims, keepdim=True) * size**-0.5


def _bounded(update: Tensor, param: Tensor, dims: tuple[int, ...], clip: float, relative: float) -> Tensor:
    """The update, its root mean square over each matrix or vector at most `clip`, in proportion to the parameter's."""
    size = 1 / (_rms(update, dims) / clip).clamp(min=1.0)
    return update * (size * _rms(param, dims).clamp(min=relative) if relative else size)


class AverageState(NamedTuple):
    """The running average of the updates."""

    mu: Params


def average_updates(decay: float | Tensor) -> Transform:
    """Momentum after the scaling: `mu = decay mu + (1 - decay) u`, passed on. Adafactor's optional first moment."""

    def update(updates: Updates, state: AverageState, params: Params) -> tuple[Updates, AverageState]:
        mu = tree.map(lambda m, u: m.lerp(u, 1 - decay), state.mu, updates)
        return mu, AverageState(mu)

    return Transform(lambda params: AverageState(zeros(params)), update)
