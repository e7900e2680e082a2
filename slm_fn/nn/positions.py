"""Positions: rotary (RoPE) with its scalings for longer contexts, and the slopes of ALiBi.

Invariant: rotation keeps norms, and the product of a query and a key depends on their distance alone.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from slm_fn.nn.config import RopeScaling

_AS_TRAINED = RopeScaling()


def frequencies(
    head_dim: int,
    theta: float,
    scaling: RopeScaling = _AS_TRAINED,
    context: int = 0,
    device: torch.device | str = "cpu",
) -> Float[Tensor, " half"]:
    """By how much every channel pair turns per place, float32: `theta^(-2i/C)`, slowed as `scaling` says.

    Args:
        context: the model's; where `scaling` names no original context, that is `context / factor`.

    Example:
        >>> frequencies(4, 100.0), frequencies(4, 100.0, RopeScaling("linear", factor=2.0))
        (tensor([1.0000, 0.1000]), tensor([0.5000, 0.0500]))

    References: arXiv 2104.09864 (RoPE), 2306.15595 (linear), 2309.00071 (YaRN; NTK-aware: its section 3.1).
    """
    C, factor = head_dim, scaling.factor
    if scaling.kind == "ntk":
        theta = theta * factor ** (C / (C - 2))
    pairs = torch.arange(0, C, 2, device=device, dtype=torch.float32)
    turns = theta ** (-pairs / C)
    if scaling.kind == "linear":
        return turns / factor
    if scaling.kind != "yarn":
        return turns
    original = scaling.original_context or context / factor

    def pair_that_turns(times: float) -> float:
        """The pair, as a fraction, that turns so many times in the original context."""
        return C * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_that_turns(scaling.beta_fast)), 0)
    high = max(min(math.ceil(pair_that_turns(scaling.beta_slow)), C - 1), low + 0.001)
    slowed = ((pairs / 2 - low) / (high - low)).clamp(0, 1)
    return turns * (1 - slowed + slowed / factor)


def attention_factor(scaling: RopeScaling) -> float:
    """What YaRN multiplies queries and keys with; here their product is, so that rotations stay rotations.

    Example:
        >>> round(attention_factor(RopeScaling("yarn", factor=4.0)), 4)
        1.1386
    """
    if scaling.kind != "yarn":
        return 1.0
    return scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1


def rope_table(
    positions_BT: Int[Tensor, "B T"], turns_per_place: Float[Tensor, " half"], dtype: torch.dtype
) -> tuple[Float[Tensor, "B T 1 half"], Float[Tensor, "B T 1 half"]]:
    """Cosines and sines of every place, computed in float32: pair i turns by `position * turns_per_place[i]`."""
    angle = positions_BT[..., None, None].float() * turns_per_place
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(
    x_BTHC: Float[Tensor, "B T H C"], table: tuple[Float[Tensor, "#B T 1 half"], Float[Tensor, "#B T 1 half"]]
) -> Float[Tensor, "B T H C"]:
    """Turn the pairs (channel i, channel i + C/2) of every head: the half-split layout of Hugging Face's Llama.

    References: arXiv 2104.09864.

    Example:
        >>> x = torch.randn(1, 3, 2, 8, generator=torch.Generator().manual_seed(0))
        >>> y = rotate(x, rope_table(torch.arange(3)[None], frequencies(8, 10_000.0), x.dtype))
        >>> torch.allclose(x.norm(dim=-1), y.norm(dim=-1))
        True
    """
    cos, sin = table
    a, b = x_BTHC.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def alibi_slopes(num_heads: int) -> list[float]:
    """How fast each head's scores fall with distance: `2^(-8i/H)` for i = 1, ..., H.

    Where H is no power of two: those of the power below it, then every other one of the power above.

    Example:
        >>> alibi_slopes(4), alibi_slopes(3)
        ([0.25, 0.0625, 0.015625, 0.00390625], [0.0625, 0.00390625, 0.25])

    References: arXiv 2108.12409.
    """
    below = 1 << num_heads.bit_length() - 1
    slopes = [2 ** (-8 * i / below) for i in range(1, below + 1)]
    return slopes + [2 ** (-4 * i / below) for i in range(1, 2 * (num_heads - below), 2)]
