"""Position encodings: rotary (RoPE) with its scalings for longer contexts, and ALiBi's slopes.

Invariant: a rotation keeps norms, and the product of a rotated query and key depends only on their
distance.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from slm_fn.nn.config import RopeScaling

_NO_SCALING = RopeScaling()


def rope_frequencies(
    head_dim: int,
    theta: float,
    scaling: RopeScaling = _NO_SCALING,
    context: int = 0,
    device: torch.device | str = "cpu",
) -> Float[Tensor, " half"]:
    """Returns RoPE's rotation per position of every channel pair, in radians: `theta^(-2i/C)`.

    Args:
        head_dim: channels C of one head, even.
        theta: base of the frequencies.
        scaling: changes the frequencies for a longer context.
        context: of the model; `context / factor` is the original context if `scaling` names none.
        device: of the result.

    Returns:
        float32, from the highest frequency to the lowest.

    Example:
        >>> rope_frequencies(4, 100.0)
        tensor([1.0000, 0.1000])
        >>> rope_frequencies(4, 100.0, RopeScaling("linear", factor=2.0))
        tensor([0.5000, 0.0500])

    References: arXiv 2104.09864 (RoPE), 2306.15595 (linear), 2309.00071 (YaRN; NTK-aware in section
    3.1).
    """
    C = head_dim
    if scaling.kind == "ntk":
        theta = theta * scaling.factor ** (C / (C - 2))
    channels = torch.arange(0, C, 2, device=device, dtype=torch.float32)
    frequencies = theta ** (-channels / C)
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "yarn":
        interpolated = _yarn_interpolation(channels / 2, C, theta, scaling, context)
        return frequencies * (1 - interpolated + interpolated / scaling.factor)
    return frequencies


def _yarn_interpolation(
    pairs: Float[Tensor, " half"],
    head_dim: int,
    theta: float,
    scaling: RopeScaling,
    context: int,
) -> Float[Tensor, " half"]:
    """How far the frequency of each channel pair is divided by `factor`: 0 not at all, 1 fully."""
    original_context = scaling.original_context or context / scaling.factor

    def pair_with_rotations(num_rotations: float) -> float:
        """The (fractional) index of the pair that rotates so often in the original context."""
        wavelength = original_context / (num_rotations * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(theta))

    low = max(math.floor(pair_with_rotations(scaling.beta_fast)), 0)
    last = min(math.ceil(pair_with_rotations(scaling.beta_slow)), head_dim - 1)
    high = max(last, low + 0.001)
    return ((pairs - low) / (high - low)).clamp(0, 1)


def attention_factor(scaling: RopeScaling) -> float:
    """Returns YaRN's factor of queries and of keys; 1 for other scalings.

    Attention multiplies scores by its square instead, so that rotations keep norms.

    Example:
        >>> round(attention_factor(RopeScaling("yarn", factor=4.0)), 4)
        1.1386

    References: arXiv 2309.00071.
    """
    if scaling.kind != "yarn":
        return 1.0
    return scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1


def rope_table(
    positions_BT: Int[Tensor, "B T"],
    frequencies: Float[Tensor, " half"],
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "B T 1 half"], Float[Tensor, "B T 1 half"]]:
    """Returns cosines and sines of the angles `position * frequency`, computed in float32.

    Args:
        positions_BT: position ids.
        frequencies: of every channel pair, from `rope_frequencies`.
        dtype: of the result.
    """
    angles = positions_BT[..., None, None].float() * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(
    x_BTHC: Float[Tensor, "B T H C"],
    table: tuple[Float[Tensor, "#B T 1 half"], Float[Tensor, "#B T 1 half"]],
) -> Float[Tensor, "B T H C"]:
    """Applies rotary embeddings: rotates the pairs (channel i, channel i + C/2) of every head.

    This is the half-split layout of Hugging Face's Llama.

    Args:
        x_BTHC: queries or keys.
        table: cosines and sines, from `rope_table`.

    Example:
        >>> x = torch.randn(1, 3, 2, 8, generator=torch.Generator().manual_seed(0))
        >>> table = rope_table(torch.arange(3)[None], rope_frequencies(8, 10_000.0), x.dtype)
        >>> torch.allclose(x.norm(dim=-1), rotate(x, table).norm(dim=-1))
        True

    References: arXiv 2104.09864.
    """
    cos, sin = table
    first, second = x_BTHC.chunk(2, -1)
    rotated_first = first * cos - second * sin
    rotated_second = second * cos + first * sin
    return torch.cat([rotated_first, rotated_second], -1)


def alibi_slopes(num_heads: int) -> list[float]:
    """Returns ALiBi's slope of each head: `2^(-8i/H)` for i = 1, ..., H.

    If H is not a power of two: the slopes of the power below it, then every other slope of the
    power above it.

    Example:
        >>> alibi_slopes(4), alibi_slopes(3)
        ([0.25, 0.0625, 0.015625, 0.00390625], [0.0625, 0.00390625, 0.25])

    References: arXiv 2108.12409.
    """
    power_below = 1 << num_heads.bit_length() - 1
    num_missing = num_heads - power_below
    slopes = [2 ** (-8 * i / power_below) for i in range(1, power_below + 1)]
    slopes_above = [2 ** (-4 * i / power_below) for i in range(1, 2 * num_missing, 2)]
    return slopes + slopes_above
