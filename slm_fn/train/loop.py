"""The training loop: steps over positions, with log lines, validation, samples and checkpoints at their intervals.

Invariant: what happens at step k depends on the state and on k alone, so a resumed loop repeats no step and skips none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import msgspec

from slm_fn.core.compose import run
from slm_fn.core.grads import is_count
from slm_fn.core.types import Metrics, Params, Step, TrainState
from slm_fn.optim.guard import SkipState
from slm_fn.optim.transforms import EmaState, ScheduleState, find
from slm_fn.train.runlog import Display


class TrainConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long, in what batches, and how often to look. Intervals are in steps; 0 switches them off."""

    total_steps: int = 1000
    batch_size: int = 16
    accumulate: int = 1
    seed: int = 0
    log_every: int = 10
    eval_every: int = 0
    eval_batches: int = 16
    sample_every: int = 0
    save_every: int = 0
    keep: int = 2
    precision: Literal["auto", "float32", "tf32", "bfloat16", "float16"] = "auto"
    engine: Literal["auto", "eager", "compile", "graph"] = "auto"
    remat: bool = False
    num_threads: int = 0
    sharding: Literal["replicate", "shard"] = "replicate"
    max_skipped: int = 10


class Progress(NamedTuple):
    """Where a loop is: steps taken, batches read, targets seen, seconds spent, the best validation loss."""

    step: int = 0
    position: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float | None = None


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
    step: Step, state: TrainState, batches: Iterator[Any], config: TrainConfig, progress: Progress, out: Outlets
) -> tuple[TrainState, Progress]:
    """Train to `total_steps`, or until `out.stopping()`; a checkpoint is saved at the end either way.

    Metrics are read from the device only at log lines.

    Raises:
        FloatingPointError: more than `max_skipped` steps in this run had a NaN or infinite gradient.
    """
    meter = _Meter(progress)
    figures: dict[str, float] = {}
    saved = -1
    for state, metrics in run(step, state, batches):
        progress = meter.advance(metrics)
        last = progress.step == config.total_steps or out.stopping()
        if due(config.log_every, progress.step) or last:
            row, progress = meter.read(state, metrics)
            out.display.update(
                progress.step, {"loss": meter.smooth, "lr": row.get("lr", 0.0), "tok_per_s": row["tok_per_s"]}
            )
            _check_skipped(state, config.max_skipped)
            if due(config.eval_every, progress.step) or progress.step == config.total_steps:
                figures = out.evaluate(trained(state))
                progress = meter.judge(figures)
                if figures:
                    out.display.note(f"step {progress.step}: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))
                row |= figures
            out.log(row)
        if due(config.sample_every, progress.step):
            out.sample(trained(state), progress.step)
        if due(config.save_every, progress.step) or last:
            saved = progress.step
            out.display.note(f"step {saved}: saved {out.save(state, meter.settle(), figures)}")
            figures = {}
        if last:
            break
    return state, meter.settle()


def due(interval: int, step: int) -> bool:
    """Whether an interval ends at this step.

    Example:
        >>> due(10, 20), due(10, 21), due(0, 20)
        (True, False, False)
    """
    return interval > 0 and step % interval == 0


def _check_skipped(state: TrainState, limit: int) -> None:
    skip = find(state.opt_state, SkipState)
    if skip is not None and int(skip.skipped) > limit:
        raise FloatingPointError(
            f"{int(skip.skipped)} steps had a NaN or infinite gradient and were skipped; "
            "lower optim.learning_rate, raise optim.warmup_steps, or set train.precision to float32"
        )


class _Meter:
    """Counts steps, tokens and seconds of one loop; the one mutable thing in it."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.smooth = progress, float("nan")
        self.began = time.perf_counter() - progress.seconds
        self.pending: list[Any] = []
        self.mark = (progress.seconds, progress.tokens)

    def advance(self, metrics: Metrics) -> Progress:
        self.pending.append(metrics.get("tokens", metrics["weight"]))
        self.progress = self.progress._replace(step=self.progress.step + 1, position=self.progress.position + 1)
        return self.progress

    def settle(self) -> Progress:
        """Read the pending counts, which waits for the device."""
        tokens = self.progress.tokens + sum(int(w) for w in self.pending)
        self.pending.clear()
        self.progress = self.progress._replace(tokens=tokens, seconds=time.perf_counter() - self.began)
        return self.progress

    def read(self, state: TrainState, metrics: Metrics) -> tuple[dict[str, Any], Progress]:
        values = {name: float(value) for name, value in metrics.items() if not is_count(name)}
        loss, now = values.pop("loss"), self.settle()
        self.smooth = loss if self.smooth != self.smooth else 0.5 * self.smooth + 0.5 * loss
        seconds, tokens = now.seconds - self.mark[0], now.tokens - self.mark[1]
        self.mark = (now.seconds, now.tokens)
        rate = find(state.opt_state, ScheduleState)
        row = {
            "step": now.step,
            "tokens": now.tokens,
            "train_loss": loss,
            **({} if rate is None else {"lr": float(rate.rate)}),
            **values,
            "tok_per_s": round(tokens / max(seconds, 1e-9), 1),
            "seconds": round(now.seconds, 3),
        }
        return row, now

    def judge(self, figures: dict[str, float]) -> Progress:
        value, best = figures.get("val_loss"), self.progress.best
        if value is not None and (best is None or value < best):
            self.progress = self.progress._replace(best=value)
        return self.progress
