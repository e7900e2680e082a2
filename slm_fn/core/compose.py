"""Plumbing for arrows: pipe, and run a step over a stream.

Invariant: nothing here looks at what flows through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import Any

from slm_fn.core.types import Metrics, Step, TrainState


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
