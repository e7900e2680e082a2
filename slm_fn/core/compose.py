"""Plumbing for arrows: pipe, run a step over a stream, every n, tee.

Invariant: nothing here looks at what flows through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import Any, TypeVar

from slm_fn.core.types import Metrics, Step, TrainState

T = TypeVar("T")


def pipe(*functions: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Compose from left to right: `pipe(f, g)(x) == g(f(x))`.

    Example:
        >>> pipe(abs, str)(-3)
        '3'
    """
    return lambda x: reduce(lambda value, f: f(value), functions, x)


def run(step: Step, state: TrainState, stream: Iterable[Any]) -> Iterator[tuple[TrainState, Metrics]]:
    """Feed a stream through a step, yielding every (state, metrics): a training loop is a for over this."""
    for batch in stream:
        state, metrics = step(state, batch)
        yield state, metrics


def every(n: int, items: Iterable[T], start: int = 0) -> Iterator[tuple[int, T]]:
    """Every n-th item with its number, counted from `start + 1`.

    Example:
        >>> list(every(2, "abcd"))
        [(2, 'b'), (4, 'd')]
    """
    return ((i, item) for i, item in enumerate(items, start + 1) if i % n == 0)


def tee(look: Callable[[T], Any], items: Iterable[T]) -> Iterator[T]:
    """Show each item to `look` and pass it on unchanged."""
    for item in items:
        look(item)
        yield item
