"""Muon: the momentum of a matrix, orthogonalised by a few matrix products.

Invariant: the last two axes are a matrix and all axes before them a batch, so stacked layers are
one batched product.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from slm_fn.core import tree
from slm_fn.core.types import Params, Transform, Updates
from slm_fn.optim.directions import zeros_like

Coefficients = tuple[tuple[float, float, float], ...]
"""(a, b, c) of each odd quintic polynomial `a s + b s^3 + c s^5`, in the order of application."""

JORDAN_COEFFICIENTS: Coefficients = ((3.4445, -4.7750, 2.0315),) * 5
"""One polynomial, five times: singular values end in about [0.7, 1.2]. Jordan et al. 2024; the same
as torch.optim.Muon's."""
POLAR_EXPRESS_COEFFICIENTS: Coefficients = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""Each polynomial is optimal for the singular values that the one before it leaves. arXiv
2505.16932."""


class MuonState(NamedTuple):
    """Momentum of the gradients."""

    mu: Params


def scale_by_muon(
    momentum: float | Tensor = 0.95,
    nesterov: bool = True,
    coefficients: Coefficients = JORDAN_COEFFICIENTS,
    shape_scaling: Literal["rms", "shape"] = "rms",
    dtype: torch.dtype = torch.float32,
) -> Transform:
    """Muon: orthogonalised momentum, for block matrices only (choose them with `partition`).

        mu = momentum mu + (1 - momentum) g
        m = mu, or momentum mu + (1 - momentum) g with `nesterov`
        update = scale orthogonalize(m)

    Args:
        momentum: decay of the momentum, in [0, 1).
        nesterov: use the momentum one step ahead.
        coefficients: of the polynomials that orthogonalise.
        shape_scaling: `rms` scales by `0.2 sqrt(max(out, in))`, so that Adam's learning rates can
            be used; `shape` by `sqrt(max(1, out / in))`, so that one learning rate suits matrices
            of all shapes.
        dtype: of the matrix products; bfloat16 is as good, on devices where it is fast.

    References: Jordan et al. 2024, "Muon"; arXiv 2502.16982 (`rms`), 2505.16932 (the polynomials).
    """
    # Compared here and not in `update`: inside a trace the two tuples are never the same object, so
    # compiled steps would differ from eager ones.
    norm_margin = 1.0 if coefficients == JORDAN_COEFFICIENTS else 1.02

    def init(params: Params) -> MuonState:
        return MuonState(zeros_like(params))

    def update(
        updates: Updates,
        state: MuonState,
        params: Params,
    ) -> tuple[Updates, MuonState]:
        mu = tree.map(lambda m, g: m.lerp(g, 1 - momentum), state.mu, updates)

        def direction(mean: Tensor, gradient: Tensor) -> Tensor:
            num_out, num_in = gradient.shape[-2:]
            scale: float
            if shape_scaling == "rms":
                scale = 0.2 * max(num_out, num_in) ** 0.5
            else:
                scale = max(1.0, num_out / num_in) ** 0.5
            ahead = gradient.lerp(mean, momentum) if nesterov else mean
            return orthogonalize(ahead, coefficients, dtype, norm_margin) * scale

        return tree.map(direction, mu, updates), MuonState(mu)

    return Transform(init, update)


def orthogonalize(
    matrices: Tensor,
    coefficients: Coefficients = JORDAN_COEFFICIENTS,
    dtype: torch.dtype = torch.float32,
    norm_margin: float = 1.0,
) -> Tensor:
    """Moves all singular values of matrices towards 1 and keeps the singular vectors.

    With the Frobenius norm at most 1, every step replaces X by `a X + (b X X' + c (X X')^2) X`,
    which applies the polynomial `a s + b s^3 + c s^5` to each singular value s.

    Args:
        matrices: (..., out, in).
        coefficients: of the polynomials.
        dtype: of the matrix products.
        norm_margin: factor of the norm that the matrix is divided by, so that rounding leaves no
            singular value above 1, where POLAR_EXPRESS_COEFFICIENTS may diverge.

    Returns:
        (..., out, in), in the dtype of `matrices`.

    Example:
        >>> g = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
        >>> bool((torch.linalg.svdvals(orthogonalize(g)) - 1).abs().max() < 0.4)
        True

    References: Jordan et al. 2024, "Muon" (kellerjordan.github.io/posts/muon).
    """
    norms: Tensor = matrices.norm(dim=(-2, -1), keepdim=True)
    x = (matrices / (norm_margin * norms).clamp(min=1e-7)).to(dtype)
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    for a, b, c in coefficients:
        gram = x @ x.mT
        # Not baddbmm: a compiler decomposes it, which rounds differently, and small singular values
        # make the difference visible.
        x = a * x + (b * gram + c * gram @ gram) @ x
    if is_tall:
        x = x.mT
    return x.to(matrices.dtype)
