"""Chance as an argument: integer keys folded by hash, numbers drawn on the CPU and then moved; dropout by tensor hash.

Invariant: a number depends on its key and path alone, never on the device, on call order or on a
global generator. What is dropped depends on the row's own noise alone, never on the rows beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

Key = int

_WEYL, _MIX_A, _MIX_B = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # SplitMix64


def fold_in(key: Key, data: int | str) -> Key:
    """A new key for a named or numbered child: a 56-bit BLAKE2b hash of both.

    Example:
        >>> fold_in(0, "blocks/attn/q") == fold_in(0, "blocks/attn/k")
        False
    """
    return int.from_bytes(hashlib.blake2b(f"{key}/{data}".encode(), digest_size=7).digest(), "big")


def _generator(key: Key) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(key)


def normal(key: Key, shape: Sequence[int], std: float = 1.0) -> Tensor:
    """Independent normal numbers with standard deviation `std`, float32, on the CPU."""
    return torch.randn(tuple(shape), generator=_generator(key), device="cpu") * std


def uniform(key: Key, shape: Sequence[int]) -> Tensor:
    """Independent uniform numbers in [0, 1), float32, on the CPU."""
    return torch.rand(tuple(shape), generator=_generator(key), device="cpu")


def permute(key: Key, index: int, size: int, rounds: int = 4) -> int:
    """Where `index` goes in the pseudo-random permutation of `range(size)` named by `key`.

    A Feistel network over the next even number of bits, walked until it lands inside: O(1) memory
    and time for any size, so a stream can jump to any position without holding an index.

    Raises:
        ValueError: index is not in range(size).

    Example:
        >>> sorted(permute(7, i, 10) for i in range(10)) == list(range(10))
        True

    References: Luby and Rackoff, 1988 (Feistel permutations); Black and Rogaway, 2002 (cycle walking).
    """
    if not 0 <= index < size:
        raise ValueError(f"permute: index {index} is not in range({size})")
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for r in range(rounds):
            left, right = right, left ^ (_mix(key + right * _WEYL + r * 0xD1B54A32D192ED03) & low)
        index = left << half | right
        if index < size:
            return index


def _mix(x: int) -> int:
    """The finaliser of SplitMix64: every input bit reaches every output bit."""
    x &= 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 30) * _MIX_A & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * _MIX_B & 0xFFFFFFFFFFFFFFFF
    return x ^ x >> 31


def fold(noise: Int[Tensor, "*#rows"], data: int | Int[Tensor, "*#rows"]) -> Int[Tensor, "*rows"]:
    """`fold_in` for tensors: new int64 noise for a numbered child of every row. Works inside vmap and compile.

    Example:
        >>> noise = row_noise(0, first_row=0, num_rows=2)
        >>> bool((fold(noise, 1) == fold(noise, 2)).any())
        False

    References: Steele, Lea and Flood, 2014 (SplitMix64).
    """
    x = noise + (_signed(data * _WEYL) if isinstance(data, int) else data * _signed(_WEYL))
    x = (x ^ x >> 30 & (1 << 34) - 1) * _signed(_MIX_A)
    x = (x ^ x >> 27 & (1 << 37) - 1) * _signed(_MIX_B)
    return x ^ x >> 31 & (1 << 33) - 1


def row_noise(key: Key, first_row: int, num_rows: int) -> Int[Tensor, " B"]:
    """One number for each of some rows, counted from the first row of the run: what a row's dropout is drawn from.

    However the rows are cut, into parts of a batch or among processes, each keeps its own.

    Example:
        >>> bool((row_noise(7, 4, 2) == row_noise(7, 0, 6)[4:]).all())
        True
    """
    return fold(torch.arange(first_row, first_row + num_rows, device="cpu"), key)


def drop(x: Float[Tensor, "B ..."], rate: float, noise: Int[Tensor, " B"], site: int) -> Float[Tensor, "B ..."]:
    """Dropout: each element is zero with probability `rate`, else divided by `1 - rate`, so that the mean is kept.

    Which ones is a hash of the row's noise, the site and the element's place in its row: 32-bit multiplications that
    wrap around, the same on every device, under vmap, compile and remat.

    Args:
        site: tells the places of a model apart that drop with the same noise.

    References: arXiv 1207.0580; the mixing is lowbias32 of Chris Wellons' hash-prospector, keyed in the middle.
    """
    if not rate:
        return x
    key = fold(noise, site).view(-1, *(1,) * (x.ndim - 1))
    low, high = (key << 32 >> 32).to(torch.int32), (key >> 32).to(torch.int32)
    row = x.shape[1:]
    h = torch.arange(row.numel(), dtype=torch.int32, device=x.device).view(row) ^ low
    h = (h ^ h >> 16 & 0xFFFF) * 0x7FEB352D ^ high
    h = (h ^ h >> 15 & 0x1FFFF) * _signed(0x846CA68B, 32)
    return torch.where(h >= round(rate * 2**32) - 2**31, x / (1 - rate), 0.0)


def _signed(x: int, bits: int = 64) -> int:
    """The integer that these bits are in two's complement."""
    return (x + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)
