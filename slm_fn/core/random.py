"""Randomness as an argument: integer keys derived by hashing, random tensors, and dropout.

Numbers are drawn on the CPU and then moved; dropout hashes a seed per row on any device.

Invariant: a number depends on its key and path alone, never on the device, on the order of calls
or on a global generator. Which elements of a row are dropped depends on that row's seed alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

Key: TypeAlias = int

# The constants of SplitMix64.
_WEYL = 0x9E3779B97F4A7C15
_MIX_A = 0xBF58476D1CE4E5B9
_MIX_B = 0x94D049BB133111EB
_MASK_64 = 0xFFFFFFFFFFFFFFFF

_FEISTEL_ROUND = 0xD1B54A32D192ED03


def fold_in(key: Key, data: int | str) -> Key:
    """Derives the key of a named or numbered child: a 56-bit BLAKE2b hash of key and data.

    Example:
        >>> fold_in(0, "blocks/attn/q") == fold_in(0, "blocks/attn/k")
        False
    """
    digest = hashlib.blake2b(f"{key}/{data}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def _generator(key: Key) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(key)


def normal(
    key: Key,
    shape: Sequence[int],
    std: float = 1.0,
) -> Tensor:
    """Draws independent normal numbers with standard deviation `std`, float32, on the CPU."""
    return torch.randn(tuple(shape), generator=_generator(key), device="cpu") * std


def uniform(key: Key, shape: Sequence[int]) -> Tensor:
    """Draws independent uniform numbers in [0, 1), float32, on the CPU."""
    return torch.rand(tuple(shape), generator=_generator(key), device="cpu")


def permute_index(
    key: Key,
    index: int,
    size: int,
    rounds: int = 4,
) -> int:
    """Returns the image of `index` under a pseudo-random permutation of `range(size)`.

    A Feistel network over the next even number of bits, applied until the result is in the range:
    O(1) memory and time for any size, so that a data stream can jump to any position without an
    index.

    Args:
        key: names the permutation.
        index: 0 to size - 1.
        size: the number of permuted elements.
        rounds: rounds of the Feistel network.

    Raises:
        ValueError: index is not in range(size).

    Example:
        >>> sorted(permute_index(7, i, 10) for i in range(10)) == list(range(10))
        True

    References: Luby and Rackoff, 1988 (Feistel permutations); Black and Rogaway, 2002 (cycle
        walking).
    """
    if not 0 <= index < size:
        raise ValueError(f"permute_index: index {index} is not in range({size})")
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    half_mask = (1 << half_bits) - 1
    while True:
        left = index >> half_bits
        right = index & half_mask
        for round_number in range(rounds):
            mixed = _mix(key + right * _WEYL + round_number * _FEISTEL_ROUND)
            left, right = right, left ^ (mixed & half_mask)
        index = left << half_bits | right
        if index < size:
            return index


def _mix(x: int) -> int:
    """Applies the finaliser of SplitMix64: every input bit reaches every output bit."""
    x &= _MASK_64
    x = (x ^ x >> 30) * _MIX_A & _MASK_64
    x = (x ^ x >> 27) * _MIX_B & _MASK_64
    return x ^ x >> 31


def fold_in_seeds(
    seeds: Int[Tensor, "*#rows"], data: int | Int[Tensor, "*#rows"]
) -> Int[Tensor, "*rows"]:
    """Derives a new int64 seed from each row's seed and a number: `fold_in` for tensors of seeds.

    Works inside vmap and torch.compile.

    Example:
        >>> seeds = row_seeds(0, first_row=0, num_rows=2)
        >>> bool((fold_in_seeds(seeds, 1) == fold_in_seeds(seeds, 2)).any())
        False

    References: Steele, Lea and Flood, 2014 (SplitMix64).
    """
    if isinstance(data, int):
        x = seeds + _as_signed(data * _WEYL)
    else:
        x = seeds + data * _as_signed(_WEYL)
    # The masks make the arithmetic shifts of int64 logical ones.
    x = (x ^ x >> 30 & (1 << 34) - 1) * _as_signed(_MIX_A)
    x = (x ^ x >> 27 & (1 << 37) - 1) * _as_signed(_MIX_B)
    return x ^ x >> 31 & (1 << 33) - 1


def row_seeds(
    key: Key,
    first_row: int,
    num_rows: int,
) -> Int[Tensor, " B"]:
    """Returns one dropout seed for each of some rows of a training run.

    Each row keeps its seed however the rows are split, into micro-batches or among processes.

    Args:
        key: the key of the run.
        first_row: the index of the first row, counted from the start of the run.
        num_rows: how many rows.

    Example:
        >>> bool((row_seeds(7, 4, 2) == row_seeds(7, 0, 6)[4:]).all())
        True
    """
    rows = torch.arange(first_row, first_row + num_rows, device="cpu")
    return fold_in_seeds(rows, key)


def dropout(
    x: Float[Tensor, "B ..."],
    rate: float,
    seeds: Int[Tensor, " B"],
    site: int,
) -> Float[Tensor, "B ..."]:
    """Sets each element to zero with probability `rate` and divides the rest by `1 - rate`.

    The choice is a hash of the row's seed, the site and the element's index in its row: 32-bit
    multiplications that wrap around, the same on every device, under vmap, compile and remat.

    Args:
        x: activations, one row per seed.
        rate: the probability of zero; 0 returns x.
        seeds: one seed per row, (B,) int64.
        site: distinguishes the layers of a model that apply dropout with the same seeds.

    References: arXiv 1207.0580; the mixing is lowbias32 of Chris Wellons' hash-prospector, keyed
    in the middle.
    """
    if not rate:
        return x
    one_per_row = (-1, *(1,) * (x.ndim - 1))
    key = fold_in_seeds(seeds, site).view(one_per_row)
    low = (key << 32 >> 32).to(torch.int32)
    high = (key >> 32).to(torch.int32)
    row_shape = x.shape[1:]
    index = torch.arange(row_shape.numel(), dtype=torch.int32, device=x.device).view(row_shape)
    hashed = index ^ low
    hashed = (hashed ^ hashed >> 16 & 0xFFFF) * 0x7FEB352D ^ high
    hashed = (hashed ^ hashed >> 15 & 0x1FFFF) * _as_signed(0x846CA68B, 32)
    threshold = round(rate * 2**32) - 2**31
    return torch.where(hashed >= threshold, x / (1 - rate), 0.0)


def _as_signed(x: int, num_bits: int = 64) -> int:
    """Returns the integer that the lowest bits of `x` are in two's complement."""
    half = 1 << num_bits - 1
    return (x + half) % (1 << num_bits) - half
