"""Ensembles: one step for many members, whose states are stacked leaf by leaf.

Invariant: member e of the lifted step is the step of member e.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.func import vmap

from slm_fn.core import tree
from slm_fn.core.types import Step, TrainState


def ensemble(step: Step) -> Step:
    """Lifts `Step -> Step`: one batch trains all members, whose states are stacked.

    Args:
        step: its gradient must be computed by the `func` engine, as vmap cannot trace `autograd`.

    Returns:
        A step over states stacked along a first axis E; its metrics have the shape (E,).

    Example:
        >>> import torch
        >>> grow = ensemble(lambda state, batch: (state, {"loss": state.params["w"] * batch}))
        >>> members = [TrainState({"w": torch.tensor(w)}, (), torch.tensor(0)) for w in (1.0, 2.0)]
        >>> grow(stack_states(members), torch.tensor(3.0))[1]["loss"]
        tensor([3., 6.])

    References: arXiv 1612.01474.
    """
    return vmap(step, in_dims=(0, None))


def stack_states(members: Sequence[TrainState]) -> TrainState:
    """Stacks the members' states into the state of an ensemble."""
    stacked: TrainState = tree.stack(*members)
    return stacked


def member_state(states: TrainState, index: int) -> TrainState:
    """Returns one member's state from the state of an ensemble."""

    def select(leaf: Tensor) -> Tensor:
        return leaf[index]

    state: TrainState = tree.map(select, states)
    return state
