"""Forward hooks by name: which statistics of which activations a run reports at its log lines.

Update hooks are Transforms in the optimizer's chain: `OptimConfig.measures` names them,
`diagnostics.read_metrics` reads them.

Invariant: a hook observes and changes nothing, and where none is named, no code of it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from slm_fn.core import tree
from slm_fn.core.types import DonatedState, DonatingStep, Metrics, TrainState, ValueAndGrad
from slm_fn.lift import taps

Observe = Callable[[TrainState, Any], Metrics]
"""`(state, batch) -> Metrics`: what hooks measure of a state on a batch, without taking a step."""


class HookConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which statistics of which activations are reported.

    `forward` names statistics (mean, std, rms, zeros), `taps` the activations. A tap is a pattern:
    `*/attn` and `*/ffn` of every layer, `final`; the default is all. Off where `forward` is empty.
    """

    forward: tuple[str, ...] = ()
    taps: tuple[str, ...] = ("*",)


def observer(vg: ValueAndGrad) -> Observe:
    """Lifts a `vg` that computes no gradient to an `Observe`.

    The `vg` is `taps.value_only`, in micro-batches and over processes as the step's. It is a
    forward pass of its own, from the state before the step and on the same batch and dropout seeds.
    So the numbers are those of the step, and the step, compiled or captured, stays as it is: hooks
    change no bit of a run.

    Example:
        >>> import torch
        >>> def loss(params, x):
        ...     return x.sum(), {"weight": torch.tensor(1.0), "acts/final/rms": params["w"]}
        >>> observe = observer(taps.value_only(loss))
        >>> observe(TrainState({"w": torch.tensor(2.0)}, (), torch.tensor(0)), torch.ones(3))
        {'acts/final/rms': tensor(2.)}
    """

    def observe(state: TrainState, batch: Any) -> Metrics:
        params = tree.map(tree.full_tensor, state.params)
        (_, aux), _ = vg(params, batch)
        return {name: value for name, value in aux.items() if name.startswith(taps.STATS_PREFIX)}

    return observe


def observed(
    step: DonatingStep, observe: Observe | None, is_due: Callable[[int], bool]
) -> DonatingStep:
    """Lifts a step on batches to one on numbered batches, whose metrics carry observations.

    Args:
        step: the training step.
        observe: measures the state before the step, on the step's batch; None measures nothing.
        is_due: whether to observe at the step of this number.

    Returns:
        A step whose batches are pairs `(number, batch)`, as `enumerate` makes them.

    Example:
        >>> import torch
        >>> def step(state, batch):
        ...     return state._replace(step=state.step + 1), {"loss": batch}
        >>> def observe(state, batch):
        ...     return {"acts/final/rms": state.step}
        >>> is_even = lambda number: number % 2 == 0
        >>> state = TrainState({}, (), torch.tensor(1))
        >>> _, metrics = observed(step, observe, is_even)(state, (2, torch.tensor(0.5)))
        >>> metrics
        {'loss': tensor(0.5000), 'acts/final/rms': tensor(1)}
    """

    def observed_step(
        state: DonatedState, numbered_batch: tuple[int, Any]
    ) -> tuple[DonatedState, Metrics]:
        number, batch = numbered_batch
        observations: Metrics = {}
        if observe is not None and is_due(number):
            observations = observe(state, batch)
        new_state, metrics = step(state, batch)
        return new_state, {**metrics, **observations}

    return observed_step


def hook_names(hooks: HookConfig, measures: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Returns the hook list of `run.json`: every hook that is on.

    Args:
        hooks: the forward hooks of the config.
        measures: the update hooks, `OptimConfig.measures`.

    Example:
        >>> hook_names(HookConfig(forward=("rms",), taps=("*/ffn",)), ("grad_norms",))
        ('forward/*/ffn/rms', 'update/grad_norms')
    """
    forward = [f"forward/{tap}/{stat}" for tap in hooks.taps for stat in hooks.forward]
    return (*forward, *(f"update/{name}" for name in measures))
