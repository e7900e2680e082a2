"""The training loop: steps over positions, with log lines, validation, samples and checkpoints at their intervals.

Invariant: what happens at step k depends on the state and on k alone, so a resumed loop repeats no step and skips none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from slm_fn.core.types import Params, Step, TrainState
from slm_fn.optim.guard import SkipState
from slm_fn.optim.transforms import EmaState, find
from slm_fn.train.hooks import HookConfig, Observe
from slm_fn.train.meter import Meter, Progress
from slm_fn.train.runlog import Display

Number = Annotated[int, msgspec.Meta(ge=1)]
Interval = Annotated[int, msgspec.Meta(ge=0)]


class TrainConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long, in what batches, and how often to look. Intervals are in steps; 0 switches them off.

    A run ends after more than `max_skipped` steps in a row that had to be skipped: one NaN may come from one batch, a
    row of them does not go away. (fp16's overflows, by which its scale is found, do not count.)
    """

    total_steps: Interval = 1000
    batch_size: Number = 16
    accumulate: Number = 1
    seed: int = 0
    log_every: Interval = 10
    eval_every: Interval = 0
    eval_batches: Number = 16
    sample_every: Interval = 0
    save_every: Interval = 0
    keep: Number = 2
    precision: Literal["auto", "float32", "tf32", "bfloat16", "float16"] = "auto"
    engine: Literal["auto", "eager", "compile", "graph"] = "auto"
    remat: bool = False
    num_threads: Interval = 0
    sharding: Literal["replicate", "shard"] = "replicate"
    max_skipped: Interval = 10
    hooks: HookConfig = HookConfig()
    tensorboard: bool = False


class Outlets(NamedTuple):
    """Where a loop's results go; effects are handed in, the loop has none of its own but the clock."""

    log: Callable[[dict[str, Any]], None]
    evaluate: Callable[[Params], dict[str, float]]
    sample: Callable[[Params, int], None]
    save: Callable[[TrainState, Progress, dict[str, float]], str]
    stopping: Callable[[], bool]
    display: Display


def trained(state: TrainState) -> Params:
    """The parameters to judge and to keep: the averaged ones where the optimizer has them."""
    ema = find(state.opt_state, EmaState)
    return state.params if ema is None else ema.average


def fit(
    step: Step,
    state: TrainState,
    batches: Iterable[Any],
    config: TrainConfig,
    progress: Progress,
    out: Outlets,
    observe: Observe | None = None,
    flops_per_token: int = 0,
) -> tuple[TrainState, Progress]:
    """Train to `total_steps`, or until `out.stopping()`; a checkpoint is saved at the end either way.

    Metrics are read from the device only where a line is due, and when a checkpoint is saved.

    Args:
        observe: asked before the step wherever a line is due; what it tells joins the line.

    Raises:
        FloatingPointError: more than `max_skipped` steps in a row were skipped, for a NaN, an infinity or a spike. The
            parameters are those before them, and saved.
    """
    meter = Meter(progress, flops_per_token)
    figures: dict[str, float] = {}
    for batch in meter.timed(batches):
        number = meter.progress.step + 1
        tells = is_line(config, number)
        seen = observe(state, batch) if observe is not None and tells else {}
        state, metrics = step(state, batch)
        meter.advance(metrics)
        last = out.stopping() or number == config.total_steps
        if tells:
            row = meter.line(state, seen)
            out.display.update(number, _shown(meter, row))
            with meter.aside():
                row |= (judged := _judge(state, meter, config, out))
            figures = judged or figures
            out.log(row)
        faults = _faults(state) if tells else 0
        with meter.aside():
            if due(config.sample_every, number):
                out.sample(trained(state), number)
            if due(config.save_every, number) or last or faults > config.max_skipped:
                place = out.save(state, meter.settle(), figures)
                out.display.note(f"step {number}: saved {place}")
                figures = {}
        if faults > config.max_skipped:
            raise FloatingPointError(advice(number, faults))
        if last:
            break
    return state, meter.settle()


def is_line(config: TrainConfig, step: int) -> bool:
    """Whether the diary gets a line at this step: at log intervals, where the model is judged, and at the end.

    Where a run is stopped it gets none, so that a resumed diary reads as if never interrupted.
    """
    return due(config.log_every, step) or due(config.eval_every, step) or step == config.total_steps


def _judge(state: TrainState, meter: Meter, config: TrainConfig, out: Outlets) -> dict[str, float]:
    step = meter.progress.step
    if not (due(config.eval_every, step) or step == config.total_steps):
        return {}
    figures = out.evaluate(trained(state))
    meter.judge(figures)
    if figures:
        out.display.note(f"step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))
    return figures


def _shown(meter: Meter, row: dict[str, Any]) -> dict[str, float]:
    """What a person watches: the loss smoothed over lines, and the share of skipped steps once there are any."""
    told = {"loss": meter.smooth, "lr": row.get("lr", 0.0), "tok_per_s": row["tok_per_s"]}
    return told | ({"skipped": meter.skipped} if meter.skipped else {})


def _faults(state: TrainState) -> int:
    """How many steps in a row, this one the last, were skipped for a fault."""
    skip = find(state.opt_state, SkipState)
    return 0 if skip is None else int(skip.in_a_row)


def due(interval: int, step: int) -> bool:
    """Whether an interval ends at this step.

    Example:
        >>> due(10, 20), due(10, 21), due(0, 20)
        (True, False, False)
    """
    return interval > 0 and step % interval == 0


def advice(step: int, faults: int) -> str:
    """What to say when a run goes wrong: what happened, what stands, what to try, where to look."""
    return (
        f"step {step}: the last {faults} steps were skipped, as their gradients were NaN, infinite or far too long; "
        "the parameters from before them are saved. Lower optim.learning_rate, raise optim.warmup_steps, or set "
        "train.precision to float32; to see where it begins, set optim.measures to [grad_norms] and "
        "train.hooks.forward to [rms]"
    )
