"""Rotary positions: a rotation of channel pairs by an angle that grows with the place.

Invariant: norms are kept, and the product of a query and a key depends on their distance alone.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def rope_table(
    positions_BT: Int[Tensor, "B T"], head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[Float[Tensor, "B T 1 half"], Float[Tensor, "B T 1 half"]]:
    """Cosines and sines of every place, computed in float32: channel pair i turns by `position * theta^(-2i/C)`."""
    pairs = torch.arange(0, head_dim, 2, device=positions_BT.device, dtype=torch.float32)
    angle = positions_BT[..., None, None].float() * theta ** (-pairs / head_dim)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(
    x_BTHC: Float[Tensor, "B T H C"], table: tuple[Float[Tensor, "#B T 1 half"], Float[Tensor, "#B T 1 half"]]
) -> Float[Tensor, "B T H C"]:
    """Turn the pairs (channel i, channel i + C/2) of every head: the half-split layout of Hugging Face's Llama.

    References: arXiv 2104.09864.

    Example:
        >>> x = torch.randn(1, 3, 2, 8, generator=torch.Generator().manual_seed(0))
        >>> y = rotate(x, rope_table(torch.arange(3)[None], 8, 10_000.0, x.dtype))
        >>> torch.allclose(x.norm(dim=-1), y.norm(dim=-1))
        True
    """
    cos, sin = table
    a, b = x_BTHC.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
