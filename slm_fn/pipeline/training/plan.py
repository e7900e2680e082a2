"""The training step that a config describes: precision, engine, remat, micro-batches, optimizer.

Invariant: every stage trains by this one composition; a stage adds its objective and its batches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import torch

from slm_fn.core import device as devices
from slm_fn.core import jit, random, tree
from slm_fn.core.compose import pipe
from slm_fn.core.grads import accumulate, remat, value_and_grad
from slm_fn.core.types import (
    Apply,
    DonatedState,
    DonatingStep,
    Head,
    Objective,
    Params,
    SeededBatch,
    Transform,
    ValueAndGrad,
)
from slm_fn.data.batches import stream
from slm_fn.lift import taps
from slm_fn.lift.dropout_seeds import with_dropout_seeds
from slm_fn.lift.routing import with_balance_loss
from slm_fn.nn import gpt
from slm_fn.nn.gpt import ModelConfig
from slm_fn.nn.ops import logits
from slm_fn.optim import recipes
from slm_fn.optim.recipes import OptimConfig
from slm_fn.pipeline.training.distributed import SINGLE_PROCESS, DistributedContext
from slm_fn.train import hooks, memory
from slm_fn.train.config import TrainConfig
from slm_fn.train.hooks import Observe
from slm_fn.train.memory import MicroBatches
from slm_fn.train.step import donating_step_with, init_state, step_with

BatchAt = Callable[[int], Any]
"""Returns the batch at a position of the data."""


class TrainingPlan(NamedTuple):
    """How to train: the model, the optimizer, and the step that a config describes.

    Attributes:
        apply: the model as it is evaluated: in the precision of the step, not compiled.
        tx: the optimizer.
        make_step: returns the step that splits batches as a `MicroBatches` says. It may overwrite
            the state it receives: a compiled one does, an eager one does not.
        settings: the config's section on training.
        dist: this process among those that train together.
        shard_params: moves fresh parameters to this process's shards; the identity if not sharded.
        needs_dropout_seeds: whether a batch carries a dropout seed for each row.
        engine: what runs the step.
        messages: lines that tell a user what was chosen.
        observe: what the forward hooks of the config measure; None without hooks.
        hook_names: all hooks that are on, for run.json.
    """

    apply: Apply
    tx: Transform
    make_step: Callable[[MicroBatches], DonatingStep]
    settings: TrainConfig
    dist: DistributedContext = SINGLE_PROCESS
    shard_params: Callable[[Params], Params] = pipe()
    needs_dropout_seeds: bool = False
    engine: jit.Engine = "eager"
    messages: tuple[str, ...] = ()
    observe: Observe | None = None
    hook_names: tuple[str, ...] = ()

    @property
    def step(self) -> DonatingStep:
        """The step with batches in as many micro-batches as the config says."""
        return self.make_step(MicroBatches(self.settings.accumulate))

    def init_state(self, params: Params) -> DonatedState:
        """Returns the state before the first step; a copy where the step writes over its state."""
        if self.engine != "eager":
            params = tree.map(torch.clone, params)
        return DonatedState(init_state(self.shard_params(params), self.tx))

    def batches(self, batch_at: BatchAt) -> BatchAt:
        """Returns batches as the step takes them: if the model drops, with a seed per row."""
        if not self.needs_dropout_seeds:
            return batch_at
        key = random.fold_in(self.settings.seed, "noise")
        batch_size = self.settings.batch_size

        def seeded_batch_at(position: int) -> SeededBatch:
            first_row, num_rows = stream.row_range(
                position, batch_size, self.dist.rank, self.dist.world_size
            )
            return SeededBatch(batch_at(position), random.row_seeds(key, first_row, num_rows))

        return seeded_batch_at


def configure_process(plan: TrainingPlan) -> None:
    """Sets what the step needs of its process: memory allocation, TF32, the compiler.

    A stage calls it once, when its training starts.
    """
    jit.configure_process(plan.engine, allow_tf32=plan.settings.precision == "tf32")


def make_plan(
    model: ModelConfig,
    objective: Objective,
    optim: OptimConfig,
    settings: TrainConfig,
    dist: DistributedContext = SINGLE_PROCESS,
    lift: Callable[[Apply], Apply] = pipe(),
) -> TrainingPlan:
    """Returns everything between a config and a step.

    Args:
        model: the architecture.
        objective: what is trained for.
        optim: the optimizer.
        settings: how long, in what batches, by which engine, in which precision.
        dist: this process among those that train together; each passes its own rows to the step.
        lift: applied to the model in training and in evaluation alike: document isolation.

    Raises:
        ValueError: this machine lacks what the engine or the precision needs.
    """
    dtype = devices.resolve_dtype(settings.precision, dist.device)
    engine, reason = _choose_engine(model, settings, dist)
    objective = _with_model_terms(objective, model)
    is_matrix = gpt.matrix_paths(model).__contains__
    tx = recipes.make_optimizer(optim, settings.total_steps, is_matrix, dtype)
    in_precision = pipe(devices.with_compute_dtype(dtype), lift)
    apply = in_precision(partial(gpt.apply, model))
    train_apply = in_precision(_training_apply(model, engine, settings.remat))
    over_processes, shard_params = _distribute(dist, settings.sharding)
    advice = memory.advise(settings, model.context)

    def make_step(micro_batches: MicroBatches) -> DonatingStep:
        in_micro_batches = partial(_in_micro_batches, micro_batches, advice)
        vg = pipe(objective, value_and_grad, in_micro_batches, over_processes)(train_apply)
        if engine == "eager" or dist.mesh is not None:
            return cast(DonatingStep, step_with(tx)(vg))
        step = donating_step_with(tx, engine)(vg)
        return jit.capture(step) if engine == "graph" else step

    engine_message = f"engine {engine} ({reason}), {str(dtype).removeprefix('torch.')}"
    return TrainingPlan(
        apply=apply,
        tx=tx,
        make_step=make_step,
        settings=settings,
        dist=dist,
        shard_params=shard_params,
        needs_dropout_seeds=gpt.needs_dropout_seeds(model),
        engine=engine,
        messages=(engine_message, *_describe_groups(model, optim)),
        observe=_make_observer(objective, apply, settings, dist),
        hook_names=hooks.hook_names(settings.hooks, optim.measures),
    )


def _choose_engine(
    model: ModelConfig, settings: TrainConfig, dist: DistributedContext
) -> jit.EngineChoice:
    num_tokens = settings.total_steps * settings.batch_size * model.context
    flops = num_tokens * gpt.train_flops_per_token(model, model.context)
    return jit.choose_engine(settings.engine, dist.device, flops / dist.world_size, dist.world_size)


def _with_model_terms(objective: Objective, model: ModelConfig) -> Objective:
    """Adds what the architecture needs of any objective: a balanced router, dropout seeds."""
    if model.ffn == "dual":
        objective = with_balance_loss(model.dual.balance, model.dual.expert_share)(objective)
    if gpt.needs_dropout_seeds(model):
        objective = with_dropout_seeds(objective)
    return objective


def _training_apply(model: ModelConfig, engine: jit.Engine, use_remat: bool) -> Apply:
    """The model with compiled blocks and head; with remat its blocks forget their activations."""
    lift_block = pipe(jit.jit(engine), remat if use_remat else pipe())
    apply = partial(gpt.apply, model, lift_block=lift_block)
    return _with_lifted_head(jit.jit(engine), apply)


def _with_lifted_head(lift: Callable[[Any], Any], apply: Apply) -> Apply:
    """The model whose head, which in training is most of the loss, goes through `lift`."""

    def with_lifted_head(
        params: Params, *args: Any, head: Head = logits, **kwargs: Any
    ) -> tuple[Any, Any]:
        return apply(params, *args, head=lift(head), **kwargs)

    return with_lifted_head


def _in_micro_batches(micro_batches: MicroBatches, advice: str, vg: ValueAndGrad) -> ValueAndGrad:
    """The same gradient from micro-batches: as many as the config says, more if memory runs out."""

    def make(count: int) -> ValueAndGrad:
        return accumulate(count)(vg)

    return memory.retry_on_out_of_memory(make, micro_batches, advice)


def _make_observer(
    objective: Objective, apply: Apply, settings: TrainConfig, dist: DistributedContext
) -> Observe | None:
    """What the forward hooks measure, on the plain model: a tap would compile a block anew."""
    if not settings.hooks.forward:
        return None
    watched = taps.with_activation_stats(settings.hooks.forward, settings.hooks.taps)(objective)
    over_processes, _ = _distribute(dist, "replicate")
    lifts = pipe(taps.value_only, accumulate(settings.accumulate), over_processes)
    return hooks.observer(lifts(watched(apply)))


def _describe_groups(model: ModelConfig, optim: OptimConfig) -> list[str]:
    """A line for each group of parameters: which optimizer settings hold for which paths."""
    is_matrix = gpt.matrix_paths(model).__contains__
    lines = []
    for group in recipes.param_groups(optim, gpt.param_sizes(model), is_matrix):
        paths = ", ".join(path.removeprefix("blocks/") for path in group.paths)
        values = ", ".join(
            f"{name.replace('_', ' ')} {value:g}" for name, value in group.settings.items()
        )
        lines.append(f"{group.name} on {paths}: {values}")
    return lines


def _distribute(
    dist: DistributedContext, sharding: str
) -> tuple[Callable[[ValueAndGrad], ValueAndGrad], Callable[[Params], Params]]:
    """The lift of value_and_grad over the processes of a job, and what shards its parameters."""
    if dist.mesh is None:
        return pipe(), pipe()
    from slm_fn.lift import shard  # slow to import, and a single process never needs it

    mesh = dist.mesh
    if sharding == "replicate":
        return shard.replicate(mesh), pipe()

    def shard_params(params: Params) -> Params:
        return shard.shard_params(params, shard.zero_placements(params, mesh), mesh)

    return shard.fsdp(mesh), shard_params
