"""Stateless layers: linear and embed (extensible by leaf kind), affine, logits, norms.

Invariant: the dtype of the activations decides. A weight is cast to it at use, and its gradient
has the dtype of the weight.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from slm_fn.core.types import Params


@singledispatch
def linear(weight: Any, x: Tensor) -> Tensor:
    """Returns `x @ weight.T`; a leaf kind such as int8 registers its own product.

    Args:
        weight: (out, in), a Tensor or a registered leaf kind.
        x: (..., in).

    Raises:
        TypeError: no product is registered for the type of the weight.

    Example:
        >>> import torch
        >>> linear(torch.ones(3, 2), torch.ones(1, 2))
        tensor([[2., 2., 2.]])
    """
    raise TypeError(f"linear: no product is registered for weights of type {type(weight).__name__}")


@linear.register
def _linear_dense(weight: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, weight.to(x.dtype))


# Looked up once before any trace; otherwise the trace would include the memory of the look-up.
linear.dispatch(Tensor)


def affine(
    params: Params,
    name: str,
    x: Tensor,
) -> Tensor:
    """Returns `linear(params[name], x)` plus the bias `params[name + "_bias"]` if there is one."""
    y: Tensor = linear(params[name], x)
    bias: Tensor | None = params.get(f"{name}_bias")
    if bias is None:
        return y
    return y + bias.to(y.dtype)


def logits(
    weight: Any,
    hidden: Tensor,
    softcap: float = 0.0,
) -> Tensor:
    """Returns the logits of hidden states, soft-capped if `softcap` is not 0.

    Args:
        weight: (V, D), the output embedding.
        hidden: (..., D).
        softcap: see `apply_softcap`.
    """
    return apply_softcap(linear(weight, hidden), softcap)


def apply_softcap(x: Tensor, softcap: float) -> Tensor:
    """Returns `softcap * tanh(x / softcap)`, which is between -softcap and softcap; 0 is no cap.

    References: arXiv 2408.00118.
    """
    if not softcap:
        return x
    return softcap * torch.tanh(x / softcap)


@singledispatch
def embed(weight: Any, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
    """Returns rows of the embedding matrix; a leaf kind registers its own look-up, as for `linear`.

    Raises:
        TypeError: no look-up is registered for the type of the weight.
    """
    raise TypeError(f"embed: no look-up is registered for weights of type {type(weight).__name__}")


@embed.register
def _embed_dense(weight: Tensor, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
    return F.embedding(tokens, weight)


embed.dispatch(Tensor)


def rms_norm(
    gain: Float[Tensor, " D"],
    x: Float[Tensor, "... D"],
    eps: float,
) -> Float[Tensor, "... D"]:
    """Root-mean-square norm: `x / sqrt(mean(x^2) + eps) * gain` over the last axis.

    References: arXiv 1910.07467.
    """
    return F.rms_norm(x, (x.shape[-1],), gain.to(x.dtype), eps)


def layer_norm(
    gain: Float[Tensor, " D"],
    bias: Float[Tensor, " D"] | None,
    x: Float[Tensor, "... D"],
    eps: float,
) -> Float[Tensor, "... D"]:
    """Layer norm: `(x - mean(x)) / sqrt(var(x) + eps) * gain + bias` over the last axis.

    References: arXiv 1607.06450.
    """
    gain = gain.to(x.dtype)
    if bias is not None:
        bias = bias.to(x.dtype)
    return F.layer_norm(x, (x.shape[-1],), gain, bias, eps)
