"""Ensembles: one step for many members, whose states are stacked leaf by leaf.

Invariant: member e of the lifted step is the step of member e.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.func import vmap

from slm_fn.core import tree
from slm_fn.core.types import Step, TrainState


def ensemble(step: Step) -> Step:
    """Lift `Step -> Step`: states stacked along a first axis E, one batch for all; metrics come back as (E,).

    The step's gradient must be made by the `func` engine: vmap cannot see through `autograd`.

    Example:
        >>> import torch
        >>> grow = ensemble(lambda state, batch: (state, {"loss": state.params["w"] * batch}))
        >>> states = gather([TrainState({"w": torch.tensor(w)}, (), torch.tensor(0)) for w in (1.0, 2.0)])
        >>> grow(states, torch.tensor(3.0))[1]["loss"]
        tensor([3., 6.])

    References: arXiv 1612.01474.
    """
    return vmap(step, in_dims=(0, None))


def gather(members: Sequence[TrainState]) -> TrainState:
    """The members' states as one."""
    return tree.stack(*members)


def member(states: TrainState, index: int) -> TrainState:
    """One member's state on its own."""
    return tree.map(lambda leaf: leaf[index], states)
