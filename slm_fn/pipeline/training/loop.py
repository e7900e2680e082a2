"""The training loop: log lines, validation, samples and checkpoints at their intervals.

Invariant: a killed run that is started again ends with the same bits as one that never stopped:
what happens at a step depends on the state and the step's number alone.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from slm_fn.config import Config
from slm_fn.core import compose, tree
from slm_fn.core import device as devices
from slm_fn.core.types import Params, TrainState
from slm_fn.data.batches import stream
from slm_fn.pipeline.training import run_folder
from slm_fn.pipeline.training.distributed import DistributedContext
from slm_fn.pipeline.training.plan import configure_process
from slm_fn.pipeline.training.run_folder import Interrupted, RunFolder
from slm_fn.pipeline.training.stage import RunOptions, Stage
from slm_fn.pipeline.training.stop_signals import catch_stop_signals
from slm_fn.train import checkpoint, run_log
from slm_fn.train import display as displays
from slm_fn.train.config import is_due, is_eval_due, is_log_due
from slm_fn.train.display import TrainDisplay
from slm_fn.train.hooks import observed
from slm_fn.train.memory import MicroBatches
from slm_fn.train.metrics import MetricsAccumulator, Progress
from slm_fn.train.skips import divergence_message, num_skipped_in_a_row
from slm_fn.train.step import eval_params


class TrainResult(NamedTuple):
    """A finished run: its last checkpoint, how far it got, and its last validation metrics."""

    checkpoint: Path
    progress: Progress
    metrics: dict[str, float]


def train(
    stage: Stage, config: Config, out: Path | str, options: RunOptions = RunOptions()
) -> TrainResult:
    """Trains a stage in a run folder to its last step.

    Of several processes only the first writes, displays and samples; all read, evaluate, and stop
    together.

    Args:
        stage: what is trained.
        config: the config that the stage was made of.
        out: the run folder.
        options: whether to resume, and how to display progress.

    Raises:
        ValueError: the folder holds another run (its config or data differ), or any run with
            `never`; or the model is to be sharded over a single process.
        FloatingPointError: more than `max_skipped` steps in a row were skipped, for a NaN, an
            infinity or a spike. The parameters from before them are saved.
        Interrupted: stopped by Ctrl+C or SIGTERM; everything is saved.
    """
    configure_process(stage.plan)
    run = run_folder.open_run(out, stage, config)
    with _make_display(stage, options.live) as display:
        for message in stage.plan.messages:
            display.note(message)
        return _train(run, options.resume, display)


def _train(run: RunFolder, resume: str, display: TrainDisplay) -> TrainResult:
    stage, plan = run.stage, run.stage.plan
    settings, dist = plan.settings, plan.dist
    # No other reference to the state: the loop replaces it, so that the first one does not stay in
    # memory.
    state, progress, result_metrics = run_folder.restore(run, resume, display.note)
    _begin_log(run, progress.step)
    folder = checkpoint.step_folder(run.path, progress.step)
    new_metrics: dict[str, float] = {}
    meter = MetricsAccumulator(progress, stage.flops_per_token)
    micro_batches = MicroBatches(settings.accumulate)
    step = observed(
        plan.make_step(micro_batches), plan.observe, lambda number: is_log_due(settings, number)
    )
    with (
        run_folder.open_metrics_log(run, progress.step) as log,
        catch_stop_signals(dist.is_first) as is_stop_requested,
        closing(_prefetch_batches(stage, progress.position)) as batches,
    ):
        numbered_batches = enumerate(meter.timed(batches), start=progress.step + 1)
        for state, metrics in compose.run(step, state, numbered_batches):
            number = meter.add(metrics).step
            is_last = dist.any(is_stop_requested()) or number == settings.total_steps
            _show_memory_messages(micro_batches, dist, display)
            num_skipped = 0
            if is_log_due(settings, number):
                line = meter.close_line(state)
                display.update(number, meter.summary(line))
                if is_eval_due(settings, number):
                    val_metrics = _evaluate(stage, state, meter, display)
                    new_metrics = val_metrics or new_metrics
                    line |= val_metrics
                log(line)
                num_skipped = num_skipped_in_a_row(state)
            has_diverged = num_skipped > settings.max_skipped
            if is_due(settings.sample_every, number):
                _write_samples(run, state, meter, display)
            if is_due(settings.save_every, number) or is_last or has_diverged:
                folder = _save(run, state, meter, new_metrics, display)
                result_metrics |= new_metrics
                new_metrics = {}
            if has_diverged:
                raise FloatingPointError(divergence_message(number, num_skipped))
            if is_last:
                break
        progress = meter.read_pending()
        dist.check_same(progress.step, "ends")
        if progress.step < settings.total_steps:
            raise Interrupted(
                f"stopped at step {progress.step} of {settings.total_steps}, saved {folder}; "
                "the same command resumes from there"
            )
    return TrainResult(folder, progress, result_metrics)


def _make_display(stage: Stage, live: bool | None) -> TrainDisplay:
    total_steps = stage.plan.settings.total_steps
    if stage.plan.dist.is_first:
        return displays.make_display(stage.name, total_steps, live)
    return displays.make_silent_display(stage.name, total_steps)


def _begin_log(run: RunFolder, step: int) -> None:
    dist = run.stage.plan.dist
    dist.check_same(step, f"checkpoints in {run.path}")
    if dist.is_first:
        run_log.truncate_after(run.path, step)
        run_folder.write_description(run)


def _prefetch_batches(stage: Stage, position: int) -> Generator[Any, None, None]:
    """Batches from a position on, made and uploaded by another thread while the step runs."""
    batch_at = stage.plan.batches(stage.batch_at)
    device = stage.plan.dist.device

    def upload(position: int) -> Any:
        return devices.upload(batch_at(position), device)

    return stream.prefetch(upload, position, stage.plan.settings.total_steps)


def _evaluate(
    stage: Stage, state: TrainState, meter: MetricsAccumulator, display: TrainDisplay
) -> dict[str, float]:
    with meter.paused():
        val_metrics = stage.evaluate(_full_params(state))
        meter.record_evaluation(val_metrics)
        if val_metrics:
            figures = ", ".join(f"{name} {value:.4f}" for name, value in val_metrics.items())
            display.note(f"step {meter.progress.step}: {figures}")
    return val_metrics


def _write_samples(
    run: RunFolder, state: TrainState, meter: MetricsAccumulator, display: TrainDisplay
) -> None:
    step = meter.progress.step
    with meter.paused():
        params = _full_params(state)
        if not run.stage.plan.dist.is_first:
            return
        for row in run.stage.sample(params):
            run_log.append(run.path / run_log.SAMPLES, {"step": step, **row})
            display.note(f"step {step}: {row['prompt']!r} -> {row['text']!r}")


def _save(
    run: RunFolder,
    state: TrainState,
    meter: MetricsAccumulator,
    val_metrics: dict[str, float],
    display: TrainDisplay,
) -> Path:
    with meter.paused():
        folder = run_folder.save_checkpoint(run, state, meter.read_pending(), val_metrics)
        display.note(f"step {meter.progress.step}: saved {folder}")
    return folder


def _full_params(state: TrainState) -> Params:
    """The parameters to evaluate, gathered from all processes where they are sharded."""
    params: Params = tree.map(tree.full_tensor, eval_params(state))
    return params


def _show_memory_messages(
    micro_batches: MicroBatches, dist: DistributedContext, display: TrainDisplay
) -> None:
    """Each process finds its own number of micro-batches, so each reports it."""
    for message in micro_batches.take_messages():
        if dist.is_first:
            display.note(message)
        else:
            print(f"process {dist.rank}: {message}", file=sys.stderr)
