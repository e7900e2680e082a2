"""Pseudo-random permutations of many indices at once: `core.random.permute_index` in numpy.

Invariant: the numbers are those of the scalar `permute_index`, which defines every data order.
"""

from __future__ import annotations

import numpy as np

from slm_fn.core import random
from slm_fn.core.random import Key

MAX_SCALAR = 24
"""Up to so many indices Python's integers are faster than numpy's calls."""
MAX_SIZE = 1 << 62
UINT64_MASK = (1 << 64) - 1


def permute(key: Key, indices: np.ndarray, size: int, rounds: int = 4) -> np.ndarray:
    """The images of indices under the permutation of `range(size)` named by `key`, as int64.

    Products in uint64 wrap like the scalar's masked ones, and its right shifts fill with zeros.

    Raises:
        ValueError: an index outside range(size), or a size above 2^62, where the arithmetic ends.

    Example:
        >>> expected = [random.permute_index(7, i, 10) for i in range(10)]
        >>> permute(7, np.arange(10), 10).tolist() == expected
        True
    """
    is_valid_size = 1 <= size <= MAX_SIZE
    if not is_valid_size or (len(indices) and not 0 <= indices.min() <= indices.max() < size):
        raise ValueError(f"permute: an index is outside range({size}), or that is beyond 2^62")
    if len(indices) <= MAX_SCALAR:
        scalars = [random.permute_index(key, int(index), size, rounds) for index in indices]
        return np.array(scalars, dtype=np.int64)
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    images = _feistel(key, indices.astype(np.uint64), half_bits, rounds)
    # Cycle walking: images beyond the size, at most three in four, are permuted again.
    outside = np.flatnonzero(images >= size)
    while len(outside):
        images[outside] = _feistel(key, images[outside], half_bits, rounds)
        outside = np.flatnonzero(images >= size)
    return images.view(np.int64)


def _feistel(key: Key, x: np.ndarray, half_bits: int, rounds: int) -> np.ndarray:
    """A Feistel network over 2 * half_bits bits."""
    shift = np.uint64(half_bits)
    low_bits = np.uint64((1 << half_bits) - 1)
    left = x >> shift
    right = x & low_bits
    for number in range(rounds):
        round_key = np.uint64((key + number * 0xD1B54A32D192ED03) & UINT64_MASK)
        mixed = right * np.uint64(0x9E3779B97F4A7C15) + round_key
        mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
        left, right = right, left ^ (mixed & low_bits)
    return left << shift | right
