"""Items into batches, and batches through one function in their order, in this process or in spawned ones.

Invariant: the number of workers changes the speed alone; at most two batches per worker are under way; a worker ends
with the process that started it, even one that was killed.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_work: Callable[[Any], Any]
"""A worker process's own function: unpickled once, not with every batch."""


def _start(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker would wait for work for ever where its parent was killed: it holds the other end of the queue itself."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(batch: Any) -> Any:
    return _work(batch)


def batched(items: Iterable[T], size: Callable[[T], int], most_size: int, most_items: int) -> Iterator[list[T]]:
    """Items by the batch, each full when it has so much in size or so many items.

    Example:
        >>> list(batched(["a", "bcd", "e"], len, most_size=4, most_items=9))
        [['a', 'bcd'], ['e']]
    """
    batch: list[T] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if total >= most_size or len(batch) >= most_items:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def in_order(batches: Iterable[T], work: Callable[[T], R], workers: int) -> Generator[tuple[T, R], None, None]:
    """Every batch with what `work`, which is pickled once per worker, makes of it; 0 workers is this process.

    Example:
        >>> list(in_order(["a", "bc"], len, 0))
        [('a', 1), ('bc', 2)]
    """
    if workers == 0:
        for batch in batches:
            yield batch, work(batch)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(work,))
    under_way: deque[tuple[T, Future[R]]] = deque()
    try:
        for batch in batches:
            under_way.append((batch, pool.submit(_call, batch)))
            if len(under_way) >= 2 * workers:
                done, future = under_way.popleft()
                yield done, future.result()
        for done, future in under_way:
            yield done, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
