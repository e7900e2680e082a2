"""The batch sizes of a decoding step: those in which a row has the same bits as in all the others.

PyTorch's products are computed by kernels that are selected by the number of rows and sum in
different orders. Of MKL's float32 products all multiples of 4 give a row the same bits on AMD, few
of them on Intel; oneDNN's bfloat16 products do from 3 rows on.

Invariant: a size beyond the first is listed only after it was measured on this machine with these
parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

BATCH_MULTIPLE = 4
"""PyTorch computes a step with a multiple of so many rows: all its CPU products that were measured
treat each of four rows the same, and few treat each of one, two or three the same as each of four.
"""

NUM_VARIANTS = 3
"""Different rows of a measurement. The number shares no factor with the tile sizes of the kernels,
so each variant is measured at every index of a tile."""

LogitsOfVariants = Callable[[Int[Tensor, " N"]], Float[Tensor, "N V"]]


def candidates(max_batch: int) -> range:
    """Returns the sizes to measure: multiples of `BATCH_MULTIPLE`, up to two beyond the maximum.

    MKL's AVX2 kernel computes six rows at a time: of three consecutive multiples of four, two give
    the same bits.

    Example:
        >>> list(candidates(6))
        [4, 8, 12, 16]
    """
    num_multiples = -(-max_batch // BATCH_MULTIPLE) + 2
    return range(BATCH_MULTIPLE, num_multiples * BATCH_MULTIPLE + 1, BATCH_MULTIPLE)


def measure(logits_of: LogitsOfVariants, max_batch: int) -> tuple[int, ...]:
    """Returns the first candidate and the later ones that give a row the same bits, ascending.

    Args:
        logits_of: computes a decoding step whose rows are the given variants, numbers below
            `NUM_VARIANTS`.
        max_batch: the most rows decoded at once. Up to `BATCH_MULTIPLE` nothing is computed, and no
            size is measured beyond the first that holds all rows.
    """
    sizes = [BATCH_MULTIPLE]
    if max_batch <= BATCH_MULTIPLE:
        return tuple(sizes)
    expected = logits_of(torch.arange(BATCH_MULTIPLE) % NUM_VARIANTS)[:NUM_VARIANTS]
    for size in candidates(max_batch)[1:]:
        variants = torch.arange(size) % NUM_VARIANTS
        if torch.equal(logits_of(variants), expected[variants]):
            sizes.append(size)
        if sizes[-1] >= max_batch:
            break
    return tuple(sizes)


def split(sizes: Sequence[int], num_rows: int) -> list[int]:
    """Returns the batch sizes of the passes that decode so many rows.

    One pass is enough for rows that fit into the largest size; the last pass is padded.

    Args:
        sizes: available batch sizes, ascending.
        num_rows: rows to decode.

    Example:
        >>> split((4, 12), 7), split((4, 8), 13)
        ([12], [8, 8])
    """
    passes = []
    num_left = num_rows
    while num_left > 0:
        size = next((size for size in sizes if size >= num_left), sizes[-1])
        passes.append(size)
        num_left -= size
    return passes


def num_padded_rows(sizes: Sequence[int], num_rows: int) -> int:
    """Returns how many rows the passes for `num_rows` have, padding included.

    Example:
        >>> num_padded_rows((4, 12), 7), num_padded_rows((4, 8), 0)
        (12, 0)
    """
    return sum(split(sizes, num_rows))


def num_slots(sizes: Sequence[int], max_batch: int) -> int:
    """Returns the number of cache slots for `max_batch` requests.

    However many of them decode, in slots that are padded to a batch size, the others need a slot
    each behind the padding.

    Example:
        >>> num_slots((1, 2, 3), 3), num_slots((4, 8), 5)
        (3, 8)
    """
    needed = []
    for num_decoding in range(max_batch + 1):
        num_prefilling = max_batch - num_decoding
        needed.append(num_padded_rows(sizes, num_decoding) + num_prefilling)
    return max(needed)
