"""Items grouped into batches, and a function mapped over batches in order, in worker processes.

Invariant: the number of workers changes the speed alone; at most two batches per worker are in
flight; a worker ends with the process that started it, even one that was killed.
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

_function: Callable[[Any], Any]
"""A worker process's own function: unpickled once, not with every batch."""


def batched(
    items: Iterable[T], size: Callable[[T], int], max_size: int, max_items: int
) -> Iterator[list[T]]:
    """Group items into batches, each complete when it reaches `max_size` or `max_items`.

    Args:
        size: returns the size of an item, such as its number of characters.
        max_size: the total size at which a batch is complete; its last item may exceed it.
        max_items: the number of items at which a batch is complete.

    Example:
        >>> list(batched(["a", "bcd", "e"], len, max_size=4, max_items=9))
        [['a', 'bcd'], ['e']]
    """
    batch: list[T] = []
    total_size = 0
    for item in items:
        batch.append(item)
        total_size += size(item)
        if total_size >= max_size or len(batch) >= max_items:
            yield batch
            batch = []
            total_size = 0
    if batch:
        yield batch


def map_in_order(
    batches: Iterable[T], function: Callable[[T], R], num_workers: int
) -> Generator[tuple[T, R], None, None]:
    """Yield each batch with the result of `function` for it, in the order of the batches.

    Args:
        function: must be picklable; it is sent once to each worker.
        num_workers: the number of spawned processes; 0 calls the function in this one.

    Example:
        >>> list(map_in_order(["a", "bc"], len, 0))
        [('a', 1), ('bc', 2)]
    """
    if num_workers == 0:
        for batch in batches:
            yield batch, function(batch)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_start_worker, initargs=(function,)
    )
    in_flight: deque[tuple[T, Future[R]]] = deque()
    try:
        for batch in batches:
            in_flight.append((batch, pool.submit(_call, batch)))
            if len(in_flight) >= 2 * num_workers:
                oldest, future = in_flight.popleft()
                yield oldest, future.result()
        for oldest, future in in_flight:
            yield oldest, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """End this process when its parent ends.

    A worker holds both ends of its queue, so without this it would wait forever for work from a
    parent that was killed.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(batch: Any) -> Any:
    return _function(batch)
