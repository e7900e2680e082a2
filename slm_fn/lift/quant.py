"""Weight quantization to 8 or 4 bits: quantize, dequantize, and the products of quantized leaves.

Activations are not quantized.

Invariant: `linear(Quant)` is `linear` of the dequantized weight within rounding, and up to
`device.MAX_INT8_KERNEL_ROWS` rows a row's result does not depend, bit for bit, on the number of
rows.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from slm_fn.core import device, tree
from slm_fn.core.types import Params, Path, PathPredicate
from slm_fn.nn import ops


class QuantConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the matrices of a model are stored.

    In 4 bits, `group` numbers of a row share a scale; in 8 bits each row has one. Embedding and
    head are stored in 8 bits in either case: no later layer corrects their errors.
    """

    bits: Literal[8, 4] = 8
    group: int = 32


PRESETS = {"int8": QuantConfig(bits=8), "int4": QuantConfig(bits=4)}
"""The configs by the names that commands accept."""


class Quant(NamedTuple):
    """An INT8 weight with a scale per output channel: it stands for `q * scale[:, None]`."""

    q: Tensor  # (..., O, I) int8, -127 to 127
    scale: Tensor  # (..., O) bfloat16


class Quant4(NamedTuple):
    """An INT4 weight in groups along the inputs: n in 0 to 15 stands for `(n - 8) * scale + zero`.

    Two numbers share a byte: the first half of a group is in the low nibbles of its bytes, the
    second half in the high nibbles.
    """

    q: Tensor  # (..., O, I / 2) uint8
    scale: Tensor  # (..., O, I / G) bfloat16
    zero: Tensor  # (..., O, I / G) bfloat16


def quantize(
    params: Params,
    config: QuantConfig,
    where: PathPredicate,
) -> Params:
    """Returns the same tree with its matrices quantized.

    Args:
        params: the parameters.
        config: bits and group size.
        where: selects the block matrices; `embed` and `head` are always quantized, to 8 bits.

    Raises:
        ValueError: the rows of a matrix do not divide into groups.

    Example:
        >>> params = {"blocks": {"q": torch.ones(2, 4, 32)}, "norm": torch.ones(32)}
        >>> small = quantize(params, QuantConfig(bits=8), lambda path: path == "blocks/q")
        >>> small["blocks"]["q"].q.dtype, small["norm"].dtype
        (torch.int8, torch.float32)

    References: arXiv 2208.07339 (per-channel INT8), 2210.17323 (INT4 in groups).
    """

    def quantize_leaf(path: Path, weight: Any) -> Any:
        is_vocabulary = path in ("embed", "head")
        if not is_vocabulary and not where(path):
            return weight
        if is_vocabulary or config.bits == 8:
            return to_int8(weight)
        _check_group(path, weight.shape[-1], config.group)
        return to_int4(weight, config.group)

    return tree.map_with_path(params, quantize_leaf)


def _check_group(
    path: Path,
    row_length: int,
    group: int,
) -> None:
    if group < 2 or group % 2 or row_length % group:
        raise ValueError(
            f"{path} has rows of {row_length} numbers, which do not divide into even groups "
            f"of {group}; choose another --group"
        )


def dequantize(params: Params, dtype: torch.dtype = torch.float32) -> Params:
    """Returns the same tree with its quantized leaves as plain tensors."""

    def dequantize_if_quantized(path: Path, leaf: Any) -> Any:
        return dequantize_leaf(leaf, dtype) if isinstance(leaf, Quant | Quant4) else leaf

    return tree.map_with_path(params, dequantize_if_quantized)


def dequantize_leaf(
    leaf: Quant | Quant4, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "... O I"]:
    """Returns the weight that a quantized leaf stands for."""
    scale = leaf.scale[..., None].to(dtype)
    if isinstance(leaf, Quant):
        return leaf.q.to(dtype) * scale
    num_groups = leaf.scale.shape[-1]
    grouped = torch.unflatten(unpack_int4(leaf), -1, (num_groups, -1))
    weights = (grouped.to(dtype) - 8) * scale + leaf.zero[..., None].to(dtype)
    return weights.flatten(-2)


def to_int8(weight: Float[Tensor, "... O I"]) -> Quant:
    """Rounds each row to the nearest of 255 even steps, the multiples of its `scale`.

    No error exceeds half a step. Scales are bfloat16 whatever the dtype of the weight, so casting
    a model changes no stored number.
    """
    weight = weight.float()
    scale = _to_bfloat16_above(weight.abs().amax(-1) / 127)
    steps = weight / scale.float()[..., None]
    q = steps.round().clamp(-127, 127).to(torch.int8)
    return Quant(q, scale)


def to_int4(weight: Float[Tensor, "... O I"], group: int) -> Quant4:
    """Rounds each group to the nearest of 16 even steps between its least and its largest number.

    Both ends are represented up to the rounding of scale and zero.

    Args:
        weight: the matrix, or a stack of them.
        group: numbers that share a scale; it divides the row length and is even.
    """
    grouped = torch.unflatten(weight.float(), -1, (-1, group))
    low = grouped.amin(-1)
    high = grouped.amax(-1)
    scale = _to_bfloat16_above((high - low) / 15)
    zero = (low + 8 * scale.float()).bfloat16()
    steps = (grouped - zero.float()[..., None]) / scale.float()[..., None]
    nibbles = steps.round().clamp(-8, 7) + 8
    first_half, second_half = nibbles.to(torch.uint8).chunk(2, -1)
    packed = first_half | second_half << 4
    return Quant4(packed.flatten(-2), scale, zero)


def _to_bfloat16_above(scale: Tensor) -> Tensor:
    """Rounds up, so that the largest weight still fits; returns 1 where all weights are zero."""
    return torch.where(scale > 0, scale * (1 + 2**-8), 1.0).bfloat16()


def unpack_int4(leaf: Quant4) -> UInt8[Tensor, "... O I"]:
    """Returns the numbers of 0 to 15 of an INT4 leaf, one per byte."""
    num_groups = leaf.scale.shape[-1]
    grouped = torch.unflatten(leaf.q, -1, (num_groups, -1))
    return torch.cat([grouped & 15, grouped >> 4], -1).flatten(-2)


@ops.linear.register
def _linear_int8(weight: Quant, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
    num_rows = x.shape[:-1].numel()
    if device.has_int8_kernel(x, num_rows):
        x_RI = x.reshape(num_rows, -1).contiguous()
        y_RO = torch._weight_int8pack_mm(x_RI, weight.q, weight.scale.to(x.dtype))
        return torch.unflatten(y_RO, 0, x.shape[:-1])
    # Each number of q is exact in x's dtype, so only the sum is rounded, and once more by the
    # scale.
    return F.linear(x, weight.q.to(x.dtype)) * weight.scale.to(x.dtype)


@ops.linear.register
def _linear_int4(weight: Quant4, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
    return F.linear(x, dequantize_leaf(weight, x.dtype))


@ops.embed.register
def _embed_int8(weight: Quant, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
    rows = F.embedding(tokens, weight.q)
    return rows.float() * weight.scale[tokens][..., None].float()


def _cache_dispatch() -> None:
    """Fills the caches of singledispatch, whose first lookup torch.compile cannot trace."""
    for kind in (Quant, Quant4):
        ops.linear.dispatch(kind)
    ops.embed.dispatch(Quant)


_cache_dispatch()
