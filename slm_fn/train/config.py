"""The settings of one training run: how long, in what batches, what is reported when.

Invariant: names and defaults are part of the config hash, so that an old run folder is recognised
and resumed.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from slm_fn.train.hooks import HookConfig

PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
Interval = Annotated[int, msgspec.Meta(ge=0)]


class TrainConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long to train, in what batches, and how often to report.

    Intervals are in steps; 0 switches them off. A run ends after more than `max_skipped` skipped
    steps in a row: one NaN may come from one batch, but many in a row do not go away. (The
    overflows by which fp16 finds its loss scale do not count.)
    """

    total_steps: Interval = 1000
    batch_size: PositiveInt = 16
    accumulate: PositiveInt = 1
    seed: int = 0
    log_every: Interval = 10
    eval_every: Interval = 0
    eval_batches: PositiveInt = 16
    sample_every: Interval = 0
    save_every: Interval = 0
    keep: PositiveInt = 2
    precision: Literal["auto", "float32", "tf32", "bfloat16", "float16"] = "auto"
    engine: Literal["auto", "eager", "compile", "graph"] = "auto"
    remat: bool = False
    num_threads: Interval = 0
    sharding: Literal["replicate", "shard"] = "replicate"
    max_skipped: Interval = 10
    hooks: HookConfig = HookConfig()
    tensorboard: bool = False


def is_due(interval: int, step: int) -> bool:
    """Whether an interval ends at this step; an interval of 0 never does.

    Example:
        >>> is_due(10, 20), is_due(10, 21), is_due(0, 20)
        (True, False, False)
    """
    return interval > 0 and step % interval == 0


def is_log_due(settings: TrainConfig, step: int) -> bool:
    """Whether a line of metrics is written at this step.

    It is at log and evaluation intervals, and at the last step. A run that is stopped writes none
    where it stops, so that the log of a resumed run reads as if never interrupted.
    """
    return is_due(settings.log_every, step) or is_eval_due(settings, step)


def is_eval_due(settings: TrainConfig, step: int) -> bool:
    """Whether the model is evaluated at this step: at its intervals, and at the last step."""
    return is_due(settings.eval_every, step) or step == settings.total_steps
