"""The training step that a config asks for: precision, engine, remat, noise, parts, optimizer, in one sentence.

Invariant: every stage trains by this sentence; a stage brings its objective, its batches and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from slm_fn.core import device as devices
from slm_fn.core import host, jit, random, tree
from slm_fn.core.compose import pipe
from slm_fn.core.grads import accumulate, remat, value_and_grad
from slm_fn.core.types import Apply, Noisy, Objective, Params, Step, TrainState, Transform, ValueAndGrad
from slm_fn.data import stream
from slm_fn.lift import taps
from slm_fn.lift.noise import noisy
from slm_fn.lift.routing import balanced
from slm_fn.nn import gpt
from slm_fn.nn.gpt import ModelConfig
from slm_fn.optim import recipes
from slm_fn.optim.recipes import OptimConfig
from slm_fn.pipeline.ranks import ALONE, Ranks
from slm_fn.train import hooks, memory
from slm_fn.train.hooks import Observe
from slm_fn.train.loop import TrainConfig
from slm_fn.train.step import init_state, step_with


class Plan(NamedTuple):
    """How to train: the model as it is judged, the optimizer, and the step for a number of parts of the batch.

    `settle` puts fresh parameters where the step wants them: on this process's shards. `told` are lines for a person,
    `observe` is what the hooks of the config look at, of which `hooks` are the names.
    """

    apply: Apply
    tx: Transform
    make: Callable[[int], Step]
    settings: TrainConfig
    here: Ranks = ALONE
    settle: Callable[[Params], Params] = lambda params: params
    is_noisy: bool = False
    engine: jit.Engine = "eager"
    told: tuple[str, ...] = ()
    observe: Observe | None = None
    hooks: tuple[str, ...] = ()

    @property
    def step(self) -> Step:
        """The step with the batch in as many parts as the config says."""
        return self.make(self.settings.accumulate)

    def begin(self, params: Params) -> TrainState:
        """The state before the first step; a copy where the engine writes over the state it is handed."""
        params = params if self.engine == "eager" else tree.map(torch.clone, params)
        return init_state(self.settle(params), self.tx)

    def batches(self, batch_at: Callable[[int], Any]) -> Callable[[int], Any]:
        """Batches by position as the step wants them: with a number per row to draw dropout from, where it drops."""
        if not self.is_noisy:
            return batch_at
        key, rows = random.fold_in(self.settings.seed, "noise"), self.settings.batch_size

        def with_noise(position: int) -> Noisy:
            first, own = stream.share(position, rows, self.here.rank, self.here.size)
            return Noisy(batch_at(position), random.row_noise(key, first, own))

        return with_noise


def plan(
    shape: ModelConfig,
    objective: Objective,
    optim: OptimConfig,
    settings: TrainConfig,
    here: Ranks = ALONE,
    lift: Callable[[Apply], Apply] = lambda apply: apply,
) -> Plan:
    """Everything between a config and a step.

    Args:
        objective: what is trained for.
        here: this process among those that train together; each hands its own rows to the step.
        lift: what is put before the model in training and in judging alike: document isolation.

    Raises:
        ValueError: this machine lacks what the engine or the precision needs.
    """
    host.keep_freed_memory()
    devices.allow_tf32(settings.precision == "tf32")
    dtype = devices.dtype_of(settings.precision, here.device)
    tokens = settings.total_steps * settings.batch_size * shape.context
    work = tokens * gpt.flops(shape, shape.context) / here.size
    engine, reason = jit.choose(settings.engine, here.device, work, here.size)
    in_precision = pipe(devices.compute_in(dtype), lift)
    apply = in_precision(partial(gpt.apply, shape))
    lift_block = pipe(jit.jit(engine), remat if settings.remat else pipe())
    in_training = in_precision(_with_head(jit.jit(engine))(partial(gpt.apply, shape, lift_block=lift_block)))
    if shape.ffn == "dual":
        objective = balanced(shape.dual.balance, shape.dual.expert_share)(objective)
    if gpt.is_noisy(shape):
        objective = noisy(objective)
    tx = recipes.make(optim, settings.total_steps, gpt.matrices(shape).__contains__, dtype)
    spread, settle = _over(here, settings.sharding)
    is_donated = engine != "eager" and here.mesh is None
    finish = pipe(jit.donate, jit.jit(engine)) if is_donated else pipe()
    whole = jit.capture if engine == "graph" else pipe()

    def in_parts(num_micro: int, vg: ValueAndGrad) -> ValueAndGrad:
        return memory.halving(lambda n: accumulate(n)(vg), num_micro, memory.advise(settings, shape.context))

    def make(num_micro: int) -> Step:
        lifts = value_and_grad, partial(in_parts, num_micro), spread, step_with(tx, finish), whole
        return pipe(objective, *lifts)(in_training)

    told = (f"engine {engine} ({reason}), {str(dtype).removeprefix('torch.')}", *_groups(shape, optim))
    observe = _observer(objective, apply, settings, here)
    names = hooks.names(settings.hooks, optim.measures)
    return Plan(apply, tx, make, settings, here, settle, gpt.is_noisy(shape), engine, told, observe, names)


def _observer(objective: Objective, apply: Apply, settings: TrainConfig, here: Ranks) -> Observe | None:
    """What the forward hooks see, by the plain model: a tap that reached a compiled block would compile it anew."""
    if not settings.hooks.forward:
        return None
    watched = taps.watch(settings.hooks.forward, settings.hooks.taps)(objective)
    over, _ = _over(here, "replicate")
    return hooks.observer(pipe(taps.observe, accumulate(settings.accumulate), over)(watched(apply)))


def _with_head(lift: Callable[[Any], Any]) -> Callable[[Apply], Apply]:
    """Lift `apply -> apply`: its head, which in training is most of the loss, goes through `lift`."""

    def outer(apply: Apply) -> Apply:
        def inner(params: Params, *args: Any, head: Any = gpt.logits, **kwargs: Any) -> Any:
            return apply(params, *args, head=lift(head), **kwargs)

        return inner

    return outer


def _groups(shape: ModelConfig, optim: OptimConfig) -> list[str]:
    """Which parameters are treated how, a line for each group."""
    groups = recipes.groups(optim, gpt.sizes(shape), gpt.matrices(shape).__contains__)
    return [
        f"{group.name} on {', '.join(path.removeprefix('blocks/') for path in group.paths)}: "
        + ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in group.settings.items())
        for group in groups
    ]


def _over(here: Ranks, sharding: str) -> tuple[Callable[[Any], Any], Callable[[Params], Params]]:
    """The lift of value_and_grad over the processes of a job, and how it wants its parameters placed."""
    if here.mesh is None:
        return pipe(), pipe()
    from slm_fn.lift import shard  # imports for long, and one process alone never meets a shard

    mesh = here.mesh
    if sharding == "replicate":
        return shard.replicate(mesh), pipe()
    return shard.fsdp(mesh), lambda params: shard.place(params, shard.zero(params, mesh), mesh)
