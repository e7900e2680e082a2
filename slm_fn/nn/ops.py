"""Layers without state: linear and embed (open by leaf kind), affine, logits, rms_norm, layer_norm.

Invariant: the activations' dtype rules; a weight is cast to it at use and its gradient comes back in its own.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import torch
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


linear.dispatch(Tensor)  # looked up once before any trace, which would else take the lookup's memory for its own


def affine(params: dict[str, Any], name: str, x: Tensor) -> Tensor:
    """`linear(params[name], x)`, and the bias added where there is one: `<name>_bias`."""
    y, bias = linear(params[name], x), params.get(f"{name}_bias")
    return y if bias is None else y + bias.to(y.dtype)


def logits(weight: Any, hidden: Tensor, softcap: float = 0.0) -> Tensor:
    """The head that makes logits, bent to `softcap * tanh(logits / softcap)` where a cap is set (arXiv 2408.00118)."""
    return capped(linear(weight, hidden), softcap)


def capped(x: Tensor, softcap: float) -> Tensor:
    """`softcap * tanh(x / softcap)`; 0 is no cap."""
    return softcap * torch.tanh(x / softcap) if softcap else x


@singledispatch
def embed(weight: Any, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
    """Rows of the embedding matrix, by the kind of the weight, as `linear`.

    Raises:
        TypeError: nobody registered this kind of weight.
    """
    raise TypeError(f"embed: no look-up is registered for a weight of kind {type(weight).__name__}")


@embed.register
def _rows(weight: Tensor, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
    return F.embedding(tokens, weight)


embed.dispatch(Tensor)


def rms_norm(gain: Float[Tensor, " D"], x: Float[Tensor, "... D"], eps: float) -> Float[Tensor, "... D"]:
    """`x / sqrt(mean(x^2) + eps) * gain` over the last axis.

    References: arXiv 1910.07467.
    """
    return F.rms_norm(x, (x.shape[-1],), gain.to(x.dtype), eps)


def layer_norm(
    gain: Float[Tensor, " D"], bias: Float[Tensor, " D"] | None, x: Float[Tensor, "... D"], eps: float
) -> Float[Tensor, "... D"]:
    """`(x - mean(x)) / sqrt(var(x) + eps) * gain + bias` over the last axis.

    References: arXiv 1607.06450.
    """
    return F.layer_norm(x, (x.shape[-1],), gain.to(x.dtype), None if bias is None else bias.to(x.dtype), eps)
