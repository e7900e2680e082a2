"""Layers without state: linear (open by leaf kind), embed, rms_norm.

Invariant: the activations' dtype rules; a weight is cast to it at use and its gradient comes back in its own.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@singledispatch
def linear(weight: Any, x: Tensor) -> Tensor:
    """`x @ weight.T`, by the kind of the weight: a leaf kind (int8, LoRA) registers how it multiplies.

    Raises:
        TypeError: nobody registered this kind of weight.

    Example:
        >>> import torch
        >>> linear(torch.ones(3, 2), torch.ones(1, 2))
        tensor([[2., 2., 2.]])
    """
    raise TypeError(f"linear: no product is registered for a weight of kind {type(weight).__name__}")


@linear.register
def _dense(weight: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, weight.to(x.dtype))


def embed(weight: Float[Tensor, "V D"], tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
    """Rows of the embedding matrix."""
    return F.embedding(tokens, weight)


def rms_norm(gain: Float[Tensor, " D"], x: Float[Tensor, "... D"], eps: float) -> Float[Tensor, "... D"]:
    """`x / sqrt(mean(x^2) + eps) * gain` over the last axis.

    References: arXiv 1910.07467.
    """
    return F.rms_norm(x, (x.shape[-1],), gain.to(x.dtype), eps)
