"""The training step that a config asks for: precision, engine, remat, noise, parts, optimizer, in one sentence.

Invariant: every stage trains by this sentence; a stage brings its objective, its batches and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from slm_fn.core import device as devices
from slm_fn.core.compose import pipe
from slm_fn.core.grads import accumulate, value_and_grad
from slm_fn.core.types import Apply, Objective, Params, Step, TrainState, Transform
from slm_fn.nn import gpt
from slm_fn.nn.gpt import ModelConfig
from slm_fn.optim import recipes
from slm_fn.optim.recipes import OptimConfig
from slm_fn.train.loop import TrainConfig
from slm_fn.train.step import init_state, step_with


class Plan(NamedTuple):
    """How to train: the model as it is judged, the optimizer, and the step for a number of parts of the batch."""

    apply: Apply
    tx: Transform
    make: Callable[[int], Step]
    settings: TrainConfig

    @property
    def step(self) -> Step:
        """The step with the batch in as many parts as the config says."""
        return self.make(self.settings.accumulate)

    def begin(self, params: Params) -> TrainState:
        """The state before the first step."""
        return init_state(params, self.tx)


def plan(
    shape: ModelConfig,
    objective: Objective,
    optim: OptimConfig,
    settings: TrainConfig,
    place: torch.device,
    lift: Callable[[Apply], Apply] = lambda apply: apply,
) -> Plan:
    """Everything between a config and a step.

    Args:
        objective: what is trained for.
        lift: what is put before the model in training and in judging alike: document isolation.
    """
    dtype = devices.dtype_of(settings.precision, place)
    apply = lift(devices.compute_in(dtype)(partial(gpt.apply, shape)))
    tx = recipes.make(optim, settings.total_steps, gpt.matrices(shape).__contains__, dtype)

    def make(num_micro: int) -> Step:
        return pipe(objective, value_and_grad, accumulate(num_micro), step_with(tx))(apply)

    return Plan(apply, tx, make, settings)
