"""Combinators of gradient transformations: chain, multi_transform, partition, inject_hyperparams.

Invariant: a combinator of Transforms returns a Transform.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slm_fn.core import tree
from slm_fn.core.types import OptState, Params, Path, PathPredicate, Transform, Updates


def chain(*transforms: Transform) -> Transform:
    """Applies transforms in sequence, each to the updates that the previous one returned.

    The state is the tuple of their states.

    References: `optax.chain`.
    """

    def init(params: Params) -> OptState:
        return tuple(transform.init(params) for transform in transforms)

    def update(
        updates: Updates,
        state: OptState,
        params: Params,
    ) -> tuple[Updates, OptState]:
        new_states = []
        for transform, inner_state in zip(transforms, state, strict=True):
            updates, new_state = transform.update(updates, inner_state, params)
            new_states.append(new_state)
        return updates, tuple(new_states)

    return Transform(init, update)


def stateless(f: Callable[[Updates, Params], Updates]) -> Transform:
    """A Transform from a pure function of updates and parameters; its state is empty.

    Example:
        >>> double = stateless(lambda updates, params: tree.map(lambda u: 2 * u, updates))
        >>> double.update({"w": torch.tensor(1.0)}, double.init({}), {})[0]
        {'w': tensor(2.)}
    """

    def init(params: Params) -> OptState:
        return ()

    def update(
        updates: Updates,
        state: OptState,
        params: Params,
    ) -> tuple[Updates, OptState]:
        return f(updates, params), state

    return Transform(init, update)


def scale(factor: float | Tensor) -> Transform:
    """Multiplies every update by a constant."""
    return stateless(lambda updates, params: tree.map(lambda u: factor * u, updates))


def multi_transform(label: Callable[[Path], str], transforms: Mapping[str, Transform]) -> Transform:
    """Applies to each leaf the Transform named by the label of its path.

    The state is the tuple of the transforms' states, in the order of `transforms`.

    Args:
        label: from a path such as `blocks/attn/q` to a key of `transforms`.
        transforms: one Transform for every label.

    Raises:
        ValueError: a path has a label without a Transform, or a Transform has no path.

    Example:
        >>> tx = multi_transform(lambda path: path[0], {"a": scale(2.0), "b": scale(3.0)})
        >>> ones = {"b1": torch.ones(()), "a1": torch.ones(())}
        >>> tx.update(ones, tx.init(ones), ones)[0]
        {'b1': tensor(3.), 'a1': tensor(2.)}

    References: `optax.multi_transform`.
    """

    def has_label(name: str, path: Path) -> bool:
        return label(path) == name

    def split(params: Params) -> list[Params]:
        paths = list(tree.named_leaves(params))
        labels = {label(path) for path in paths}
        if labels != transforms.keys():
            unknown = sorted(labels - transforms.keys())
            unused = sorted(transforms.keys() - labels)
            raise ValueError(
                f"multi_transform: no transform named {unknown}, no path labelled {unused},"
                f" among {paths}"
            )
        return [tree.partition(params, partial(has_label, name))[0] for name in transforms]

    def init(params: Params) -> OptState:
        pairs = zip(transforms.values(), split(params), strict=True)
        return tuple(transform.init(subtree) for transform, subtree in pairs)

    def update(
        updates: Updates,
        state: OptState,
        params: Params,
    ) -> tuple[Updates, OptState]:
        new_updates = []
        new_states = []
        groups = zip(transforms.values(), split(updates), state, split(params), strict=True)
        for transform, group_updates, group_state, group_params in groups:
            updated, new_state = transform.update(group_updates, group_state, group_params)
            new_updates.append(updated)
            new_states.append(new_state)
        merged = reduce(tree.merge, new_updates)
        return tree.reorder_like(merged, updates), tuple(new_states)

    return Transform(init, update)


def partition(
    where: PathPredicate,
    chosen: Transform,
    rest: Transform,
) -> Transform:
    """Applies one Transform to the leaves whose path is chosen and another to all others.

    Raises:
        ValueError: `where` chooses no path or every path.
    """

    def label(path: Path) -> str:
        return "chosen" if where(path) else "rest"

    return multi_transform(label, {"chosen": chosen, "rest": rest})


class InjectState(NamedTuple):
    """State of the inner transform, its hyper-parameters, and the number of updates."""

    inner: Any
    hyper: dict[str, Tensor]  # each () float32; of a schedule, the value last used
    num_updates: Tensor  # () float32


def inject_hyperparams(
    make: Callable[..., Transform], **hyper: float | Callable[[Tensor], Tensor]
) -> Transform:
    """Builds `make(**hyper)` with its hyper-parameters stored in the optimizer state.

    Constants stay as they are and may be set in the state; schedules are evaluated at every step.
    This makes a hyper-parameter sweep out of an ensemble: stack the states of
    `inject_hyperparams(make, rate=r)` for several `r` and vmap the update of any one of them.

    Args:
        make: returns a Transform, given every hyper-parameter as a float32 scalar tensor.
        hyper: numbers, or schedules from the number of updates to a value.

    Example:
        >>> tx = inject_hyperparams(scale, factor=3.0)
        >>> w = {"w": torch.ones(())}
        >>> tx.update(w, tx.init(w), w)[0]
        {'w': tensor(3.)}

    References: `optax.inject_hyperparams`.
    """
    schedules = {name: value for name, value in hyper.items() if callable(value)}
    constants = {name: value for name, value in hyper.items() if not callable(value)}

    def evaluate(count: Tensor) -> dict[str, Tensor]:
        return {name: schedule(count) for name, schedule in schedules.items()}

    def init(params: Params) -> InjectState:
        zero = torch.zeros((), device=tree.leaves(params)[0].device)
        values = {name: zero + value for name, value in constants.items()} | evaluate(zero)
        return InjectState(make(**values).init(params), values, zero)

    def update(
        updates: Updates,
        state: InjectState,
        params: Params,
    ) -> tuple[Updates, InjectState]:
        values = state.hyper | evaluate(state.num_updates)
        new_updates, inner = make(**values).update(updates, state.inner, params)
        return new_updates, InjectState(inner, values, state.num_updates + 1)

    return Transform(init, update)


def apply_updates(params: Params, updates: Updates) -> Params:
    """Returns `params + updates`, leaf by leaf, in the dtype of the parameters."""
    new_params: Params = tree.map(lambda p, u: p + u.to(p.dtype), params, updates)
    return new_params
