"""Batches as a function of (seed, position): nothing to save but an integer, and any batch can be asked for at once.

A split of N tokens holds n = (N - 1) // seq_len windows of seq_len + 1 tokens that overlap in one, so that within an
epoch every token is predicted exactly once, up to a tail of at most seq_len tokens. Each epoch visits its windows in
another order and, after the first, cuts them from another offset (the split read as a ring, the end followed by its
first document), which also moves the tail. Document boundaries are the start tokens; `lift.documents` cuts attention
there when it is asked to.

Invariant: a batch depends on the pack, the seed and its position alone; all ranks' rows together are one rank's batch.
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
from slm_fn.data import shuffle
from slm_fn.data.pack import Pack, rows

T = TypeVar("T")


def places(
    seed: Key, position: int, batch_size: int, size: int, rank: int = 0, world_size: int = 1
) -> list[tuple[int, int]]:
    """(epoch, item) of each row of a batch: every item once per epoch, in an order of its own for each.

    Args:
        position: the number of the batch, from 0. Batches may straddle two epochs.
        batch_size: rows of the whole batch, of which each rank gets a contiguous part.

    Raises:
        ValueError: no items, or fewer rows than ranks.

    Example:
        >>> sorted(item for k in range(2) for _, item in places(0, k, batch_size=3, size=6))
        [0, 1, 2, 3, 4, 5]
    """
    first, rows = share(position, batch_size, rank, world_size)
    return [(epoch, item) for epoch, items in visits(seed, first, rows, size) for item in items.tolist()]


def share(position: int, batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """The first row of a rank's part of a batch, counted from the beginning of the run, and how many it has.

    Where the rows do not divide, some ranks have one more than others.

    Raises:
        ValueError: fewer rows than ranks.

    Example:
        >>> [share(10, 5, rank, 2) for rank in (0, 1)]
        [(50, 2), (52, 3)]
    """
    if batch_size < world_size or not 0 <= rank < world_size:
        raise ValueError(
            f"cannot draw rank {rank} of {world_size}'s part of {batch_size} rows: there must be at least one for each"
        )
    begin, end = (batch_size * r // world_size for r in (rank, rank + 1))
    return position * batch_size + begin, end - begin


def visits(seed: Key, first: int, rows: int, size: int) -> list[tuple[int, np.ndarray]]:
    """The items that `rows` rows from row `first` on visit, as (epoch, items) for each epoch they touch.

    Raises:
        ValueError: there are no items.
    """
    if size < 1:
        raise ValueError(f"cannot draw {rows} rows from {size} items: there must be at least one")
    out = []
    while rows > 0:
        epoch, index = divmod(first, size)
        here = min(rows, size - index)
        out.append((epoch, shuffle.permute(random.fold_in(seed, epoch), np.arange(index, index + here), size)))
        first, rows = first + here, rows - here
    return out


def num_windows(pack: Pack, split: str) -> int:
    """How many windows one epoch of a split has; 0 when it is shorter than one."""
    return max(0, pack.info.splits[split].tokens - 1) // pack.info.seq_len


def lm_batch(
    pack: Pack, split: str, seed: Key, position: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> LMBatch:
    """The batch at a position, at the same cost wherever that is; every target counts.

    Raises:
        ValueError: the split is shorter than one window, or there are fewer rows than ranks.
    """
    first, num_rows = share(position, batch_size, rank, world_size)
    return as_batch(windows(pack, split, seed, first, num_rows))


def windows(pack: Pack, split: str, seed: Key, first: int, num_rows: int) -> np.ndarray:
    """(num_rows, seq_len + 1) ids, int64: the windows that rows from `first` on visit.

    Raises:
        ValueError: the split is shorter than one window.
    """
    total, seq_len, size = pack.info.splits[split].tokens, pack.info.seq_len, num_windows(pack, split)
    if size == 0:
        raise ValueError(f"the {split} split of {pack.path} has {total} tokens, less than one window of {seq_len + 1}")
    starts = [items * seq_len + _offset(seed, epoch, total) for epoch, items in visits(seed, first, num_rows, size)]
    return rows(pack, split, np.concatenate(starts), seq_len + 1)


def as_batch(tokens: np.ndarray) -> LMBatch:
    """Rows of ids as a batch in which every target counts."""
    return LMBatch(torch.from_numpy(tokens), torch.ones(len(tokens), tokens.shape[1] - 1))


def _offset(seed: Key, epoch: int, total: int) -> int:
    """Where an epoch's first window begins: at the beginning in the first, anywhere in the ring later."""
    return random.fold_in(random.fold_in(seed, epoch), "offset") % total if epoch else 0


def prefetch(batch_at: Callable[[int], T], start: int, stop: int, depth: int = 2) -> Generator[T, None, None]:
    """`batch_at` of each position in turn, the next `depth` of them made by a thread while this one is used.

    An error in `batch_at` arrives at its own position. Closing the iterator ends the thread.

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
