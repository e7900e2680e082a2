"""Muon: momentum of a matrix, made orthogonal by a few products.

Invariant: the last two axes are a matrix and all before them a batch, so stacked layers are one product each.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from slm_fn.core import tree
from slm_fn.core.types import Params, Transform, Updates
from slm_fn.optim.directions import zeros

Polynomials = tuple[tuple[float, float, float], ...]

JORDAN: Polynomials = ((3.4445, -4.7750, 2.0315),) * 5
"""One polynomial five times: singular values end in about [0.7, 1.2]. Jordan et al. 2024; torch.optim.Muon's."""
POLAR: Polynomials = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""Each polynomial the best one for where the last left the values. arXiv 2505.16932."""


def orthogonalize(
    matrices: Tensor, polynomials: Polynomials = JORDAN, dtype: torch.dtype = torch.float32, room: float = 1.0
) -> Tensor:
    """Push the singular values of `(..., out, in)` matrices towards 1 by odd quintic polynomials of the matrix.

    Args:
        room: divides the matrix once more, so that rounding leaves no value above 1, where POLAR may run away.

    Example:
        >>> g = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
        >>> bool((torch.linalg.svdvals(orthogonalize(g)) - 1).abs().max() < 0.4)
        True

    References: Jordan et al. 2024, "Muon" (kellerjordan.github.io/posts/muon).
    """
    x = (matrices / (room * matrices.norm(dim=(-2, -1), keepdim=True)).clamp(min=1e-7)).to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for a, b, c in polynomials:
        gram = x @ x.mT
        # No baddbmm: compiled it is taken apart, rounds otherwise, and small singular values make that visible.
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class MuonState(NamedTuple):
    """Momentum of the gradients."""

    mu: Params


def scale_by_muon(
    momentum: float | Tensor = 0.95,
    nesterov: bool = True,
    polynomials: Polynomials = JORDAN,
    fit: Literal["rms", "shape"] = "rms",
    dtype: torch.dtype = torch.float32,
) -> Transform:
    """Orthogonalised momentum, for block matrices only: choose them by path with `partition`.

    Args:
        fit: `rms` scales by `0.2 sqrt(max(out, in))`, so that Adam's learning rates carry over; `shape` by
            `sqrt(max(1, out / in))`, so that one rate fits matrices of all shapes.
        dtype: in which the products run; bf16 is as good where it is fast.

    References: Jordan et al. 2024, "Muon"; arXiv 2502.16982 (`rms`), 2505.16932 (the polynomials).
    """

    # Out here: within a trace no tuple is the other, and compiled steps would be others than eager ones.
    room = 1.0 if polynomials == JORDAN else 1.02

    def update(updates: Updates, state: MuonState, params: Params) -> tuple[Updates, MuonState]:
        mu = tree.map(lambda m, g: m.lerp(g, 1 - momentum), state.mu, updates)

        def direction(m: Tensor, g: Tensor) -> Tensor:
            out, into = g.shape[-2:]
            size = 0.2 * max(out, into) ** 0.5 if fit == "rms" else max(1.0, out / into) ** 0.5
            return orthogonalize(g.lerp(m, momentum) if nesterov else m, polynomials, dtype, room) * size

        return tree.map(direction, mu, updates), MuonState(mu)

    return Transform(lambda params: MuonState(zeros(params)), update)
