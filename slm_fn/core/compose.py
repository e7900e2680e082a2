"""Function composition: `pipe`, and `run`, which threads a state through a training step.

Invariant: nothing here inspects the values that pass through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast, overload

from slm_fn.core.types import DonatingStep, Metrics, Step, TrainState

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
F = TypeVar("F")
G = TypeVar("G")


@overload
def pipe() -> Callable[[A], A]: ...


@overload
def pipe(f1: Callable[[A], B], /) -> Callable[[A], B]: ...


@overload
def pipe(f1: Callable[[A], B], f2: Callable[[B], C], /) -> Callable[[A], C]: ...


@overload
def pipe(
    f1: Callable[[A], B], f2: Callable[[B], C], f3: Callable[[C], D], /
) -> Callable[[A], D]: ...


@overload
def pipe(
    f1: Callable[[A], B], f2: Callable[[B], C], f3: Callable[[C], D], f4: Callable[[D], E], /
) -> Callable[[A], E]: ...


@overload
def pipe(
    f1: Callable[[A], B],
    f2: Callable[[B], C],
    f3: Callable[[C], D],
    f4: Callable[[D], E],
    f5: Callable[[E], F],
    /,
) -> Callable[[A], F]: ...


@overload
def pipe(
    f1: Callable[[A], B],
    f2: Callable[[B], C],
    f3: Callable[[C], D],
    f4: Callable[[D], E],
    f5: Callable[[E], F],
    f6: Callable[[F], G],
    /,
) -> Callable[[A], G]: ...


@overload
def pipe(*functions: Callable[[Any], Any]) -> Callable[[Any], Any]: ...


def pipe(*functions: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Composes functions from left to right: `pipe(f, g)(x) == g(f(x))`.

    Returns:
        The composed function; the identity if there are no functions.

    Example:
        >>> pipe(abs, str)(-3)
        '3'
    """

    def composed(value: Any) -> Any:
        for function in functions:
            value = function(value)
        return value

    return composed


def run(
    step: Step | DonatingStep,
    state: TrainState,
    batches: Iterable[Any],
) -> Iterator[tuple[TrainState, Metrics]]:
    """Yields the (state, metrics) after each batch: a training loop is a `for` over this.

    A `DonatingStep` overwrites the old state, also the one passed in here: after each iteration
    only the yielded state is valid.

    Args:
        step: the training step.
        state: the state before the first batch.
        batches: one batch per step, drawn only when its step is due.

    Example:
        >>> import torch
        >>> def count(state, batch):
        ...     return state._replace(step=state.step + 1), {"loss": batch}
        >>> start = TrainState({}, (), torch.tensor(0))
        >>> for state, metrics in run(count, start, torch.ones(3)):
        ...     pass
        >>> state.step
        tensor(3)
    """
    # At run time both kinds of step have one signature: `DonatedState` is a `TrainState`.
    advance = cast(Step, step)
    for batch in batches:
        state, metrics = advance(state, batch)
        yield state, metrics
