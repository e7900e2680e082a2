"""Combinators of gradient transformations: chain, stateless, partition, skip_nonfinite, apply_updates.

Invariant: a combinator of Transforms is a Transform.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slm_fn.core import tree
from slm_fn.core.types import OptState, Params, Transform, Updates, Where


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


def scale(factor: float) -> Transform:
    """Multiply every update by a constant."""
    return stateless(lambda updates, params: tree.map(lambda u: factor * u, updates))


def partition(where: Where, chosen: Transform, rest: Transform) -> Transform:
    """One Transform for the leaves whose path is chosen, another for the rest.

    Raises:
        ValueError: no path is chosen, or all are: the predicate names leaves that this tree lacks.
    """

    def split(t: Params) -> tuple[Params, Params]:
        yes, no = tree.partition(t, where)
        if not yes or not no:
            raise ValueError(f"partition: the predicate chose {'none' if not yes else 'all'} of {list(tree.paths(t))}")
        return yes, no

    def init(params: Params) -> OptState:
        yes, no = split(params)
        return chosen.init(yes), rest.init(no)

    def update(updates: Updates, state: OptState, params: Params) -> tuple[Updates, OptState]:
        (yes, no), (p_yes, p_no) = split(updates), split(params)
        yes, s_yes = chosen.update(yes, state[0], p_yes)
        no, s_no = rest.update(no, state[1], p_no)
        return tree.like(tree.merge(yes, no), updates), (s_yes, s_no)

    return Transform(init, update)


def apply_updates(params: Params, updates: Updates) -> Params:
    """`params + updates`, leaf by leaf, in the params' dtype."""
    return tree.map(lambda p, u: p + u.to(p.dtype), params, updates)
