"""Combinators of gradient transformations: chain, stateless, partition, masked, inject, apply_updates.

Invariant: a combinator of Transforms is a Transform.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slm_fn.core import tree
from slm_fn.core.types import OptState, Params, Path, Transform, Updates, Where


def chain(*transforms: Transform) -> Transform:
    """One after another, each on what the last returned. The state is the tuple of their states.

    References: the grammar of optax.
    """

    def init(params: Params) -> OptState:
        return tuple(t.init(params) for t in transforms)

    def update(updates: Updates, state: OptState, params: Params) -> tuple[Updates, OptState]:
        states = []
        for t, s in zip(transforms, state, strict=True):
            updates, s = t.update(updates, s, params)
            states.append(s)
        return updates, tuple(states)

    return Transform(init, update)


def stateless(f: Callable[[Updates, Params], Updates]) -> Transform:
    """A Transform from a pure function of updates and params.

    Example:
        >>> double = stateless(lambda updates, params: tree.map(lambda u: 2 * u, updates))
        >>> double.update({"w": torch.tensor(1.0)}, double.init({}), {})[0]
        {'w': tensor(2.)}
    """
    return Transform(lambda params: (), lambda updates, state, params: (f(updates, params), state))


def scale(factor: float | Tensor) -> Transform:
    """Multiply every update by a constant."""
    return stateless(lambda updates, params: tree.map(lambda u: factor * u, updates))


def label(name: Callable[[Path], str], transforms: Mapping[str, Transform]) -> Transform:
    """Each leaf goes to the Transform that its path's name chooses. The state is the tuple of their states, in order.

    Raises:
        ValueError: a path gets a name that no Transform has, or a Transform gets no path.

    Example:
        >>> tx = label(lambda path: path[0], {"a": scale(2.0), "b": scale(3.0)})
        >>> ones = {"b1": torch.ones(()), "a1": torch.ones(())}
        >>> tx.update(ones, tx.init(ones), ones)[0]
        {'b1': tensor(3.), 'a1': tensor(2.)}
    """

    def has_name(wanted: str, path: Path) -> bool:
        return name(path) == wanted

    def split(t: Params) -> list[Params]:
        named = {name(path) for path in tree.paths(t)}
        if named != transforms.keys():
            unknown, idle = sorted(named - transforms.keys()), sorted(transforms.keys() - named)
            raise ValueError(f"label: no transform named {unknown}, no path for {idle}, among {list(tree.paths(t))}")
        return [tree.partition(t, partial(has_name, n))[0] for n in transforms]

    def init(params: Params) -> OptState:
        return tuple(t.init(part) for t, part in zip(transforms.values(), split(params), strict=True))

    def update(updates: Updates, state: OptState, params: Params) -> tuple[Updates, OptState]:
        rows = zip(transforms.values(), split(updates), state, split(params), strict=True)
        done = [t.update(u, s, p) for t, u, s, p in rows]
        return tree.like(reduce(tree.merge, (u for u, _ in done)), updates), tuple(s for _, s in done)

    return Transform(init, update)


def partition(where: Where, chosen: Transform, rest: Transform) -> Transform:
    """One Transform for the leaves whose path is chosen, another for the rest.

    Raises:
        ValueError: no path is chosen, or all are: the predicate names leaves that this tree lacks.
    """
    return label(lambda path: "chosen" if where(path) else "rest", {"chosen": chosen, "rest": rest})


def masked(where: Where, transform: Transform) -> Transform:
    """The Transform for the leaves whose path is chosen; the rest pass as they are.

    Raises:
        ValueError: no path is chosen, or all are.
    """
    return partition(where, transform, chain())


class InjectState(NamedTuple):
    """The state of the transform that was made, its hyper-parameters, and the number of updates."""

    inner: Any
    hyper: dict[str, Tensor]  # each () float32; of a schedule, the value last used
    num_updates: Tensor  # () float32


def inject(make: Callable[..., Transform], **hyper: float | Callable[[Tensor], Tensor]) -> Transform:
    """`make(**hyper)`, its hyper-parameters held in the state: constants there to be set, schedules evaluated anew.

    So members of an ensemble differ in them: stack the states of `inject(make, rate=r)` for several r, and the update
    of any one of them, vmapped, is a sweep.

    Example:
        >>> tx = inject(scale, factor=3.0)
        >>> w = {"w": torch.ones(())}
        >>> tx.update(w, tx.init(w), w)[0]
        {'w': tensor(3.)}
    """
    moving = {name: value for name, value in hyper.items() if callable(value)}
    still = {name: value for name, value in hyper.items() if not callable(value)}

    def init(params: Params) -> InjectState:
        zero = torch.zeros((), device=tree.leaves(params)[0].device)
        values = {name: zero + value for name, value in still.items()}
        values |= {name: schedule(zero) for name, schedule in moving.items()}
        return InjectState(make(**values).init(params), values, zero)

    def update(updates: Updates, state: InjectState, params: Params) -> tuple[Updates, InjectState]:
        values = state.hyper | {name: schedule(state.num_updates) for name, schedule in moving.items()}
        updates, inner = make(**values).update(updates, state.inner, params)
        return updates, InjectState(inner, values, state.num_updates + 1)

    return Transform(init, update)


def apply_updates(params: Params, updates: Updates) -> Params:
    """`params + updates`, leaf by leaf, in the params' dtype."""
    return tree.map(lambda p, u: p + u.to(p.dtype), params, updates)
