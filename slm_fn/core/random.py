"""Chance as an argument: integer keys folded by hash, numbers drawn on the CPU and then moved.

Invariant: a number depends on its key and path alone, never on the device, on call order or on a
global generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

Key = int


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
            left, right = right, left ^ (_mix(key + right * 0x9E3779B97F4A7C15 + r * 0xD1B54A32D192ED03) & low)
        index = left << half | right
        if index < size:
            return index


def _mix(x: int) -> int:
    """The finaliser of SplitMix64: every input bit reaches every output bit."""
    x &= 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ x >> 31
