"""Forward hooks by name: which statistics of which activations a run tells of at its log lines.

Update hooks are Transforms in the optimizer's chain: `OptimConfig.measures` names them, `measure.read` reads them.

Invariant: a hook looks and changes nothing, and where none is named, nothing of it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from slm_fn.core import tree
from slm_fn.core.types import Metrics, TrainState, ValueAndGrad
from slm_fn.lift import taps

Observe = Callable[[TrainState, Any], Metrics]
"""What a state makes of a batch, without taking a step."""


class HookConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is told of activations: `forward` names statistics (mean, std, rms, zeros), `taps` the activations.

    A tap is a pattern: `*/attn` and `*/ffn` of every layer, `final`; the default is all. Off where `forward` is empty.
    """

    forward: tuple[str, ...] = ()
    taps: tuple[str, ...] = ("*",)


def observer(vg: ValueAndGrad) -> Observe:
    """Lift a `vg` that makes no gradient (`taps.observe`, in parts, over processes) to what the loop calls.

    It is a forward pass of its own, from the state before the step and on the same batch and noise. So the numbers are
    those of the step, and the step, compiled or captured, stays as it is: hooks change no bit of a run.

    Example:
        >>> import torch
        >>> loss = lambda params, x: (x.sum(), {"weight": torch.tensor(1.0), "acts/final/rms": params["w"]})
        >>> look = observer(taps.observe(loss))
        >>> look(TrainState({"w": torch.tensor(2.0)}, (), torch.tensor(0)), torch.ones(3))
        {'acts/final/rms': tensor(2.)}
    """

    def observe(state: TrainState, batch: Any) -> Metrics:
        (_, aux), _ = vg(tree.map(tree.whole, state.params), batch)
        return {name: value for name, value in aux.items() if name.startswith(taps.PREFIX)}

    return observe


def names(hooks: HookConfig, measures: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The hook list of `run.json`: every hook that is on.

    Example:
        >>> names(HookConfig(forward=("rms",), taps=("*/ffn",)), ("grad_norms",))
        ('forward/*/ffn/rms', 'update/grad_norms')
    """
    forward = (f"forward/{tap}/{stat}" for tap in hooks.taps for stat in hooks.forward)
    return (*forward, *(f"update/{name}" for name in measures))
