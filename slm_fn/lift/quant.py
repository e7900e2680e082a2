"""Weights in 8 or 4 bits: quantize, dequantize, and how a quantised leaf multiplies. Activations stay as they are.

Invariant: `linear(Quant)` is `linear` of the dequantised weight within rounding, and up to `device.FEW_ROWS` rows a
row's result does not depend, bit for bit, on how many stand beside it.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from slm_fn.core import device, tree
from slm_fn.core.types import Params, Path, Where
from slm_fn.nn import ops


class QuantConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a model's matrices are kept. `group` numbers of a row share a scale in 4 bits; 8 bits have one a row.

    In 4 bits the embedding and the head still take 8: what they get wrong no later layer mends.
    """

    bits: Literal[8, 4] = 8
    group: int = 32


NAMED = {"int8": QuantConfig(bits=8), "int4": QuantConfig(bits=4)}


class Quant(NamedTuple):
    """INT8 with a scale per output channel: the weight is `q * scale[:, None]`."""

    q: Tensor  # (..., O, I) int8, -127 to 127
    scale: Tensor  # (..., O) bfloat16


class Quant4(NamedTuple):
    """INT4 in groups along the inputs: a number n of 0 to 15 is the weight `(n - 8) * scale + zero` of its group.

    Two numbers share a byte: the first half of a group lies in the low halves of its bytes, the second in the high.
    """

    q: Tensor  # (..., O, I / 2) uint8
    scale: Tensor  # (..., O, I / G) bfloat16
    zero: Tensor  # (..., O, I / G) bfloat16


def quantize(params: Params, config: QuantConfig, where: Where) -> Params:
    """The same tree with the matrices that `where` names as quantised leaves.

    Args:
        where: the block matrices; `embed` and `head` come along.

    Raises:
        ValueError: the rows of a matrix are no whole number of groups.

    Example:
        >>> params = {"blocks": {"q": torch.ones(2, 4, 32)}, "norm": torch.ones(32)}
        >>> small = quantize(params, QuantConfig(bits=8), lambda path: path == "blocks/q")
        >>> small["blocks"]["q"].q.dtype, small["norm"].dtype
        (torch.int8, torch.float32)

    References: arXiv 2208.07339 (per-channel INT8), 2210.17323 (INT4 in groups).
    """

    def one(path: Path, weight: Any) -> Any:
        if path in ("embed", "head"):
            return to_int8(weight)
        if not where(path):
            return weight
        if config.bits == 8:
            return to_int8(weight)
        if config.group < 2 or config.group % 2 or weight.shape[-1] % config.group:
            raise ValueError(
                f"{path} has rows of {weight.shape[-1]} numbers, which are no whole, even groups of {config.group}; "
                "take another --group"
            )
        return to_int4(weight, config.group)

    return tree.update_in(params, one)


def dequantize(params: Params, dtype: torch.dtype = torch.float32) -> Params:
    """The same tree with plain tensors in place of quantised leaves."""
    return tree.update_in(params, lambda _, leaf: dense(leaf, dtype) if isinstance(leaf, Quant | Quant4) else leaf)


def dense(leaf: Quant | Quant4, dtype: torch.dtype = torch.float32) -> Float[Tensor, "... O I"]:
    """The weight that a quantised leaf stands for."""
    if isinstance(leaf, Quant):
        return leaf.q.to(dtype) * leaf.scale[..., None].to(dtype)
    groups = numbers(leaf).unflatten(-1, (leaf.scale.shape[-1], -1)).to(dtype) - 8
    return (groups * leaf.scale[..., None].to(dtype) + leaf.zero[..., None].to(dtype)).flatten(-2)


def to_int8(weight: Float[Tensor, "... O I"]) -> Quant:
    """The nearest of 255 even steps in each row: no number is off by more than half a step, its row's `scale`.

    Scales are bfloat16 whatever the weight is, so that casting a model changes none of what was stored.
    """
    weight = weight.float()
    scale = _in_bfloat16(weight.abs().amax(-1) / 127)
    q = (weight / scale.float()[..., None]).round().clamp(-127, 127).to(torch.int8)
    return Quant(q, scale)


def to_int4(weight: Float[Tensor, "... O I"], group: int) -> Quant4:
    """The nearest of 16 even steps between the least and the largest number of each group; both are met, about."""
    groups = weight.float().unflatten(-1, (-1, group))
    low, high = groups.amin(-1), groups.amax(-1)
    scale = _in_bfloat16((high - low) / 15)
    zero = (low + 8 * scale.float()).bfloat16()
    n = ((groups - zero.float()[..., None]) / scale.float()[..., None]).round().clamp(-8, 7) + 8
    first, second = n.to(torch.uint8).chunk(2, -1)
    return Quant4((first | second << 4).flatten(-2), scale, zero)


def _in_bfloat16(scale: Tensor) -> Tensor:
    """The next number up, so that the largest weight still fits; 1 where all weights are zero."""
    return torch.where(scale > 0, scale * (1 + 2**-8), 1.0).bfloat16()


def numbers(leaf: Quant4) -> UInt8[Tensor, "... O I"]:
    """The numbers of 0 to 15, one a byte."""
    bytes_of_groups = leaf.q.unflatten(-1, (leaf.scale.shape[-1], -1))
    return torch.cat([bytes_of_groups & 15, bytes_of_groups >> 4], -1).flatten(-2)


@ops.linear.register
def _int8(weight: Quant, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
    rows = x.shape[:-1].numel()
    if device.has_int8_kernel(x, rows):
        y = torch._weight_int8pack_mm(x.reshape(rows, -1).contiguous(), weight.q, weight.scale.to(x.dtype))
        return y.unflatten(0, x.shape[:-1])
    # Each number is one that x's dtype holds, so only the sum is rounded; then once more by the scale.
    return F.linear(x, weight.q.to(x.dtype)) * weight.scale.to(x.dtype)


@ops.linear.register
def _int4(weight: Quant4, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
    return F.linear(x, dense(weight, x.dtype))


@ops.embed.register
def _embed_int8(weight: Quant, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
    return F.embedding(tokens, weight.q).float() * weight.scale[tokens][..., None].float()


for _kind in (Quant, Quant4):
    ops.linear.dispatch(_kind)  # looked up before any trace
ops.embed.dispatch(Quant)
