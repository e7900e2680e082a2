"""The training step that a config asks for: precision, engine, remat, noise, parts, optimizer, in one sentence.

Invariant: every stage trains by this sentence; a stage brings its objective, its batches and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.distributed.device_mesh import DeviceMesh

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
    """How to train: the model as it is judged, the optimizer, and the step for a number of parts of the batch.

    `settle` puts fresh parameters where the step wants them: on this process's shards.
    """

    apply: Apply
    tx: Transform
    make: Callable[[int], Step]
    settings: TrainConfig
    settle: Callable[[Params], Params] = lambda params: params

    @property
    def step(self) -> Step:
        """The step with the batch in as many parts as the config says."""
        return self.make(self.settings.accumulate)

    def begin(self, params: Params) -> TrainState:
        """The state before the first step."""
        return init_state(self.settle(params), self.tx)


def plan(
    shape: ModelConfig,
    objective: Objective,
    optim: OptimConfig,
    settings: TrainConfig,
    place: torch.device,
    lift: Callable[[Apply], Apply] = lambda apply: apply,
    mesh: DeviceMesh | None = None,
) -> Plan:
    """Everything between a config and a step.

    Args:
        objective: what is trained for.
        lift: what is put before the model in training and in judging alike: document isolation.
        mesh: of the processes that train together; each hands its own rows to the step.
    """
    dtype = devices.dtype_of(settings.precision, place)
    apply = lift(devices.compute_in(dtype)(partial(gpt.apply, shape)))
    tx = recipes.make(optim, settings.total_steps, gpt.matrices(shape).__contains__, dtype)

    spread, settle = _over(mesh, settings.sharding)

    def make(num_micro: int) -> Step:
        return pipe(objective, value_and_grad, accumulate(num_micro), spread, step_with(tx))(apply)

    return Plan(apply, tx, make, settings, settle)


def _over(mesh: DeviceMesh | None, sharding: str) -> tuple[Callable[[Any], Any], Callable[[Params], Params]]:
    """The lift of value_and_grad over the processes of a job, and how it wants its parameters placed."""
    if mesh is None:
        return pipe(), pipe()
    from slm_fn.lift import shard  # imports for long, and one process alone never meets a shard

    if sharding == "replicate":
        return shard.replicate(mesh), pipe()
    return shard.fsdp(mesh), lambda params: shard.place(params, shard.zero(params, mesh), mesh)
