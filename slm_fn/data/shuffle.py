"""Shuffled orders by the batch: `core.random.permute` of many indices at once, in numpy.

Invariant: the numbers are those of the scalar `permute`, on which every data order hangs.
"""

from __future__ import annotations

import numpy as np

from slm_fn.core import random
from slm_fn.core.random import Key

FEW = 24
"""Up to here Python's integers are quicker than numpy's calls."""
_ALL = (1 << 64) - 1


def permute(key: Key, indices: np.ndarray, size: int, rounds: int = 4) -> np.ndarray:
    """Where each index goes in the pseudo-random permutation of `range(size)` named by `key`, as int64.

    Products in uint64 wrap as the scalar's masked ones do, and its right shifts bring in zeros.

    Raises:
        ValueError: an index is not in range(size), or the size is above 2^62, where the arithmetic ends.

    Example:
        >>> permute(7, np.arange(10), 10).tolist() == [random.permute(7, i, 10) for i in range(10)]
        True
    """
    if not 1 <= size <= 1 << 62 or (len(indices) and not 0 <= indices.min() <= indices.max() < size):
        raise ValueError(f"permute: an index is outside range({size}), or that is beyond 2^62")
    if len(indices) <= FEW:
        return np.array([random.permute(key, int(i), size, rounds) for i in indices], dtype=np.int64)
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    out = _feistel(key, indices.astype(np.uint64), half, rounds)
    while len(outside := np.flatnonzero(out >= size)):  # at most three in four
        out[outside] = _feistel(key, out[outside], half, rounds)
    return out.view(np.int64)


def _feistel(key: Key, x: np.ndarray, half: int, rounds: int) -> np.ndarray:
    low, shift = np.uint64((1 << half) - 1), np.uint64(half)
    left, right = x >> shift, x & low
    for r in range(rounds):
        mixed = right * np.uint64(0x9E3779B97F4A7C15) + np.uint64((key + r * 0xD1B54A32D192ED03) & _ALL)
        mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
        left, right = right, left ^ (mixed & low)
    return left << shift | right
