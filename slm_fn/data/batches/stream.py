"""Packed batches as a function of (seed, position): resuming needs one integer.

A split of N tokens holds n = (N - 1) // seq_len windows of seq_len + 1 tokens that overlap by one
token, so that within an epoch every token is predicted exactly once, but for a tail of at most
seq_len tokens. Each epoch visits its windows in another order and, after the first, begins them at
another offset (the split read as a ring, the end followed by its first document), which also moves
the tail. Document boundaries are the start tokens; `lift.documents` cuts attention there.

Invariant: a batch depends on the pack, the seed and its position alone; the rows of all ranks
together are the batch of a single rank.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from slm_fn.core import random
from slm_fn.core.random import Key
from slm_fn.core.types import LMBatch
from slm_fn.data.batches import shuffle
from slm_fn.data.pack import dataset
from slm_fn.data.pack.dataset import Pack

T = TypeVar("T")


def batch_items(
    seed: Key, position: int, batch_size: int, size: int, rank: int = 0, world_size: int = 1
) -> list[tuple[int, int]]:
    """(epoch, item) of each row of a batch: every item once per epoch, shuffled anew for each.

    Args:
        position: the number of the batch, from 0. A batch may span two epochs.
        batch_size: rows of the batch of all ranks; each rank draws a contiguous range of them.
        size: number of items.

    Raises:
        ValueError: no items, or fewer rows than ranks.

    Example:
        >>> batches = [batch_items(0, position, batch_size=3, size=6) for position in range(2)]
        >>> sorted(item for batch in batches for _, item in batch)
        [0, 1, 2, 3, 4, 5]
    """
    first_row, num_rows = row_range(position, batch_size, rank, world_size)
    pairs: list[tuple[int, int]] = []
    for epoch, items in items_by_epoch(seed, first_row, num_rows, size):
        pairs += [(epoch, item) for item in items.tolist()]
    return pairs


def row_range(position: int, batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """A rank's rows of a batch: the first, counted from the start of the run, and their number.

    Where the rows do not divide, some ranks have one more than others.

    Raises:
        ValueError: fewer rows than ranks.

    Example:
        >>> [row_range(10, 5, rank, 2) for rank in (0, 1)]
        [(50, 2), (52, 3)]
    """
    if batch_size < world_size or not 0 <= rank < world_size:
        raise ValueError(
            f"cannot draw the rows of rank {rank} of {world_size} from a batch of {batch_size}: "
            "there must be at least one for each"
        )
    start = batch_size * rank // world_size
    stop = batch_size * (rank + 1) // world_size
    return position * batch_size + start, stop - start


def items_by_epoch(
    seed: Key, first_row: int, num_rows: int, size: int
) -> list[tuple[int, np.ndarray]]:
    """The items that a range of rows visits, as (epoch, items) for each epoch that it touches.

    Args:
        first_row: counted from the start of the run.
        size: number of items.

    Raises:
        ValueError: there are no items.
    """
    if size < 1:
        raise ValueError(
            f"cannot draw {num_rows} rows from {size} items: there must be at least one"
        )
    epochs = []
    row = first_row
    end = first_row + num_rows
    while row < end:
        epoch, index = divmod(row, size)
        count = min(end - row, size - index)
        order = random.fold_in(seed, epoch)
        items = shuffle.permute(order, np.arange(index, index + count), size)
        epochs.append((epoch, items))
        row += count
    return epochs


def num_windows(pack: Pack, split: str) -> int:
    """Windows in one epoch of a split; 0 where it is shorter than one."""
    return max(0, pack.info.splits[split].tokens - 1) // pack.info.seq_len


def lm_batch(
    pack: Pack,
    split: str,
    seed: Key,
    position: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> LMBatch:
    """The batch at a position, at the same cost for every position; every target counts.

    Raises:
        ValueError: the split is shorter than one window, or there are fewer rows than ranks.
    """
    first_row, num_rows = row_range(position, batch_size, rank, world_size)
    return as_batch(windows(pack, split, seed, first_row, num_rows))


def windows(pack: Pack, split: str, seed: Key, first_row: int, num_rows: int) -> np.ndarray:
    """(num_rows, seq_len + 1) int64 token ids: the windows that rows from `first_row` on visit.

    Raises:
        ValueError: the split is shorter than one window.
    """
    num_tokens = pack.info.splits[split].tokens
    seq_len = pack.info.seq_len
    size = num_windows(pack, split)
    if size == 0:
        raise ValueError(
            f"the {split} split of {pack.path} has {num_tokens} tokens, "
            f"less than one window of {seq_len + 1}"
        )
    starts = [
        items * seq_len + _offset(seed, epoch, num_tokens)
        for epoch, items in items_by_epoch(seed, first_row, num_rows, size)
    ]
    return dataset.read_rows(pack, split, np.concatenate(starts), seq_len + 1)


def as_batch(tokens: np.ndarray) -> LMBatch:
    """Rows of token ids as a batch in which every target counts."""
    num_rows, length = tokens.shape
    return LMBatch(torch.from_numpy(tokens), torch.ones(num_rows, length - 1))


def _offset(seed: Key, epoch: int, num_tokens: int) -> int:
    """Offset of an epoch's first window: 0 in the first epoch, any token of the ring later."""
    if epoch == 0:
        return 0
    return random.fold_in(random.fold_in(seed, epoch), "offset") % num_tokens


def prefetch(
    batch_at: Callable[[int], T], start: int, stop: int, depth: int = 2
) -> Generator[T, None, None]:
    """`batch_at` of each position in order; a thread makes up to `depth` batches ahead.

    An error in `batch_at` is raised at its own position. Closing the iterator ends the thread.

    Example:
        >>> list(prefetch(lambda position: position * position, 2, 5))
        [4, 9, 16]
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    ahead: deque[Future[T]] = deque()
    try:
        for position in range(start, stop):
            while len(ahead) <= depth and position + len(ahead) < stop:
                ahead.append(pool.submit(batch_at, position + len(ahead)))
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
