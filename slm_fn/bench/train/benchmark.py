"""`slm bench train`: training speed, compared with the machine's matmul rate and with peers.

Invariant: the measured step is the one that `slm pretrain` takes, and its loss is reported, which
shows that it learns.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import torch
from torch import Tensor

from slm_fn import config as configs
from slm_fn.bench.rounds import Note, no_note, run_rounds
from slm_fn.bench.train import peers
from slm_fn.bench.train.peers import LlamaShape, TrainPeer
from slm_fn.bench.train.report import OWN_NAME, TrainReport, make_report
from slm_fn.bench.train.timing import StepTiming, StepWorkload, random_tokens, time_steps
from slm_fn.config import Config, PretrainConfig
from slm_fn.core import device as devices
from slm_fn.core import random, tree
from slm_fn.core.types import DonatedState, DonatingStep, LMBatch
from slm_fn.data.batches import stream
from slm_fn.loss.lm import next_token
from slm_fn.nn import gpt
from slm_fn.nn.gpt import ModelConfig
from slm_fn.optim.recipes import OptimConfig
from slm_fn.pipeline.planning.budget import with_vocabulary
from slm_fn.pipeline.planning.roofline import matmul_rate
from slm_fn.pipeline.training.distributed import DistributedContext
from slm_fn.pipeline.training.plan import TrainingPlan, configure_process, make_plan
from slm_fn.train.config import TrainConfig
from slm_fn.train.memory import MicroBatches

DEFAULT_MODEL = ModelConfig(
    vocab_size=8192,
    dim=384,
    num_layers=6,
    num_heads=6,
    num_kv_heads=6,
    ffn_dim=1024,
    context=256,
    tied=True,
)
"""The model without `--config`: 13.8M parameters."""
DEFAULT_CONFIG = Config(
    model=DEFAULT_MODEL,
    pretrain=PretrainConfig(
        optim=OptimConfig(schedule="constant", warmup_steps=0), train=TrainConfig(batch_size=8)
    ),
)


class _StatefulStep:
    """A training step that holds its state, as `time_steps` takes it: batch -> loss."""

    def __init__(self, step: DonatingStep, state: DonatedState) -> None:
        self.step = step
        self.state = state

    def __call__(self, batch: LMBatch) -> Tensor:
        self.state, metrics = self.step(self.state, batch)
        return metrics["loss"]


def run(
    config: Config = DEFAULT_CONFIG,
    device: str = "auto",
    num_steps: int = 5,
    repeat: int = 5,
    train_peers: Sequence[TrainPeer] = (),
    note: Note = no_note,
) -> TrainReport:
    """Measures how fast the model of a config and the peers train on random tokens.

    Args:
        config: the model, the optimizer and the settings of `slm pretrain`.
        device: name of the device, or `auto`.
        num_steps: timed steps of a round, after some untimed ones.
        repeat: number of rounds.
        train_peers: other trainers to measure in the same rounds (`select_peers`).
        note: gets a line after every run.

    Raises:
        ValueError: the model's sizes do not fit each other, or the device is not there.
    """
    resolved_device = devices.resolve(device)
    model = gpt.check(config.model)
    workload = StepWorkload(
        vocab_size=model.vocab_size,
        batch_size=config.pretrain.train.batch_size,
        context=model.context,
        num_steps=num_steps,
        device=str(resolved_device),
    )
    shape = LlamaShape(
        dim=model.dim,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        ffn_dim=model.ffn_dim,
        tied=model.tied,
    )
    calls: dict[str, Callable[[], StepTiming]] = {OWN_NAME: partial(run_own, config, workload)}
    for peer in train_peers:
        calls[peer.name] = partial(peers.run, peer, shape, workload)
    timings = run_rounds(calls, repeat, note, _describe)
    return make_report(config, workload, timings)


def run_own(config: Config, workload: StepWorkload) -> StepTiming:
    """Trains in this process by the step of `slm pretrain` and returns its timing."""
    device = torch.device(workload.device)
    settings = config.pretrain.train
    devices.set_num_threads(settings.num_threads)
    dtype = devices.resolve_dtype(settings.precision, device)
    matmul_rate_before = matmul_rate(device, dtype)
    plan = make_plan(
        config.model, next_token, config.pretrain.optim, settings, DistributedContext(device)
    )
    configure_process(plan)
    micro_batches = MicroBatches(settings.accumulate)
    # No variable here refers to the first state: it would stay in memory and count into the peak.
    step = _StatefulStep(plan.make_step(micro_batches), _init_state(plan, config.model, device))

    def batch_at(position: int) -> LMBatch:
        batch = stream.as_batch(random_tokens(workload, position))
        on_device: LMBatch = tree.to_device(batch, device)
        return on_device

    num_batches = workload.num_warmup_steps + workload.num_steps
    timing = time_steps(step, stream.prefetch(batch_at, 0, num_batches), workload)
    for message in micro_batches.take_messages():
        print(message, file=sys.stderr)
    mean_matmul_rate = statistics.mean([matmul_rate_before, matmul_rate(device, dtype)])
    return timing._replace(matmul_flop_per_s=mean_matmul_rate, engine=plan.engine)


def _init_state(plan: TrainingPlan, model: ModelConfig, device: torch.device) -> DonatedState:
    params = gpt.init(model, random.fold_in(plan.settings.seed, "init"))
    return plan.init_state(tree.to_device(params, device))


def resolve_config(
    name: str | None,
    overrides: Sequence[str] = (),
    engine: str | None = None,
    precision: str | None = None,
    batch_size: int | None = None,
    context: int | None = None,
) -> Config:
    """Returns the config to measure: a file, a preset or the default, with the flags applied.

    A config without a vocabulary size takes that of its tokenizer's section.

    Args:
        name: file or preset; None takes `DEFAULT_CONFIG`.
        overrides: `path.to.key=value` strings.
        engine: replaces `pretrain.train.engine`; None leaves it. Likewise the others.

    Raises:
        ValueError: a value is of the wrong type or out of range.

    Example:
        >>> resolve_config("tiny", context=64).model.context
        64
    """
    flags = {
        "pretrain.train.engine": engine,
        "pretrain.train.precision": precision,
        "pretrain.train.batch_size": batch_size,
        "model.context": context,
    }
    flag_overrides = [f"{key}={value}" for key, value in flags.items() if value is not None]
    all_overrides = [*overrides, *flag_overrides]
    if name is None:
        default = msgspec.to_builtins(DEFAULT_CONFIG)
        overridden = configs.override(default, all_overrides)
        return configs.convert(overridden, "slm bench train", Config)
    return with_vocabulary(configs.load(name, all_overrides))


def select_peers(
    config: Config, device: str, kind: str | None, precision: str = "", compiled: bool | None = None
) -> list[TrainPeer]:
    """Returns the peers that the flags describe; none if `kind` is None.

    An open precision is that of slm's own training on the device.
    """
    if not kind:
        return []
    dtype = devices.resolve_dtype(config.pretrain.train.precision, devices.resolve(device))
    own_precision = "bfloat16" if dtype == torch.bfloat16 else "float32"
    return peers.select(kind, precision, compiled, own_precision)


def _describe(timing: StepTiming) -> str:
    speed = f"{timing.tok_per_s:,.0f} tok/s"
    return f"{speed}, {timing.peak_memory_mib:,.0f} MiB, loss {timing.last_loss:.3f}"
