"""One line of metrics.jsonl: means, counts and rates over the steps since the last line.

Metrics stay on the device until a line is due, so that the loop never waits for the device between
lines.

Invariant: but for `MACHINE_METRICS` a line is a function of the run and its step: the sums of an
unfinished line are in `Progress`, which checkpoints store, so a run that was stopped between two
lines writes the same next one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch

from slm_fn.core import device as devices
from slm_fn.core import tree
from slm_fn.core.grads import is_count
from slm_fn.core.types import Metrics, TrainState
from slm_fn.lift import taps
from slm_fn.lift.routing import ROUTES
from slm_fn.optim import diagnostics
from slm_fn.optim.guard import SkipState
from slm_fn.optim.transforms import ScheduleState, find_state

B = TypeVar("B")

MetricSums = tuple[tuple[str, float, float], ...]
"""For each metric since the last line: its name, the sum of `weight * value`, and of `weight`.

Counts have weight one."""

MACHINE_METRICS = ("tok_per_s", "data_wait", "peak_memory_mib", "seconds")
"""Metrics of this machine and its clock: all others are the same if a run is repeated."""
LOSS_SMOOTHING = 0.5
"""How much of the smoothed loss each new line replaces."""


class Progress(NamedTuple):
    """How far a run has got.

    Attributes:
        step: steps taken.
        position: batches read.
        tokens: targets trained on.
        seconds: time spent, over all resumes.
        best_val_loss: the lowest validation loss.
        metric_sums: sums over the steps since the last line of metrics.jsonl.
    """

    step: int = 0
    position: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_val_loss: float | None = None
    metric_sums: MetricSums = ()


class MetricsAccumulator:
    """Counts steps, tokens and seconds of one training loop, and sums up its metrics between lines.

    Args:
        progress: where the run begins or resumes.
        flops_per_token: of training; if not 0, lines report the operations spent.
    """

    def __init__(self, progress: Progress, flops_per_token: int = 0) -> None:
        self.progress = progress
        self.flops_per_token = flops_per_token
        self.smoothed_loss = math.nan
        self.skipped_share = 0.0
        self._pending: list[Metrics] = []
        self._observations: Metrics = {}
        self._start_time = time.perf_counter() - progress.seconds
        self._seconds_at_line = progress.seconds
        self._tokens_at_line = progress.tokens
        self._data_seconds = 0.0
        self._paused_seconds = 0.0

    def timed(self, batches: Iterable[B]) -> Iterator[B]:
        """Yields the batches; the time spent waiting for them is reported as `data_wait`."""
        source = iter(batches)
        while True:
            started = time.perf_counter()
            try:
                batch = next(source)
            except StopIteration:
                return
            self._data_seconds += time.perf_counter() - started
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Marks time that is not training, such as evaluation: not counted in `tok_per_s`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._paused_seconds += time.perf_counter() - started

    def add(self, metrics: Metrics) -> Progress:
        """Counts a step and keeps its metrics, which stay on the device.

        Activation statistics are not averaged: a line reports those of its own step.
        """
        self._observations = _activations(metrics)
        self._pending.append(
            {name: value for name, value in metrics.items() if name not in self._observations}
        )
        self.progress = self.progress._replace(
            step=self.progress.step + 1, position=self.progress.position + 1
        )
        return self.progress

    def read_pending(self) -> Progress:
        """Adds the metrics of all steps so far to the sums, which waits for the device."""
        sums = {name: (total, weight) for name, total, weight in self.progress.metric_sums}
        tokens = self.progress.tokens
        # One step after another, in double precision: a checkpoint in between changes no bit of the
        # sums.
        for step_metrics in _to_host(self._pending):
            weight = step_metrics["weight"]
            tokens += round(step_metrics.get("tokens", weight))
            _add_to_sums(sums, step_metrics, weight)
        self._pending.clear()
        self.progress = self.progress._replace(
            tokens=tokens,
            seconds=time.perf_counter() - self._start_time,
            metric_sums=tuple((name, total, weight) for name, (total, weight) in sums.items()),
        )
        return self.progress

    def close_line(self, state: TrainState) -> dict[str, Any]:
        """Returns the line of metrics.jsonl that ends at this step, and begins the next one.

        Args:
            state: the state after the step; the learning rate, skipped steps and measures are read
                from it.
        """
        progress = self.read_pending()
        means = _means(progress.metric_sums)
        loss = means.pop("loss", None)
        self._smooth(loss)
        schedule = find_state(state.opt_state, ScheduleState)
        skips = find_state(state.opt_state, SkipState)
        self.skipped_share = 0.0 if skips is None else int(skips.skipped) / progress.step
        line: dict[str, Any] = {"step": progress.step, "tokens": progress.tokens}
        if self.flops_per_token:
            line["flops"] = progress.tokens * self.flops_per_token
        line["train_loss"] = loss
        if schedule is not None:
            line["lr"] = float(schedule.rate)
        line |= means
        line |= _counts(progress.metric_sums)
        if skips is not None:
            line["skipped"] = int(skips.skipped)
        measured = {**diagnostics.read_metrics(state.opt_state), **self._observations}
        line |= {name: float(value) for name, value in measured.items()}
        line |= self._machine_metrics(progress, tree.leaves(state.params)[0].device)
        self._begin_line(progress)
        return line

    def record_evaluation(self, val_metrics: dict[str, float]) -> None:
        """Keeps the lowest validation loss."""
        val_loss = val_metrics.get("val_loss")
        best = self.progress.best_val_loss
        if val_loss is not None and (best is None or val_loss < best):
            self.progress = self.progress._replace(best_val_loss=val_loss)

    def summary(self, line: dict[str, Any]) -> dict[str, float]:
        """Returns what is displayed: smoothed loss, rates, the share of skipped steps if any."""
        shown = {
            "loss": self.smoothed_loss,
            "lr": line.get("lr", 0.0),
            "tok_per_s": line["tok_per_s"],
        }
        if self.skipped_share:
            shown["skipped"] = self.skipped_share
        return shown

    def _smooth(self, loss: float | None) -> None:
        if loss is None:
            return
        if math.isnan(self.smoothed_loss):
            self.smoothed_loss = loss
        else:
            kept = 1 - LOSS_SMOOTHING
            self.smoothed_loss = kept * self.smoothed_loss + LOSS_SMOOTHING * loss

    def _machine_metrics(self, progress: Progress, device: torch.device) -> dict[str, Any]:
        """The metrics named in `MACHINE_METRICS`."""
        seconds = progress.seconds - self._seconds_at_line
        training_seconds = max(seconds - self._paused_seconds, 1e-9)
        tokens = progress.tokens - self._tokens_at_line
        metrics: dict[str, Any] = {
            "tok_per_s": round(tokens / training_seconds, 1),
            "data_wait": round(self._data_seconds / training_seconds, 4),
        }
        peak_bytes = devices.peak_memory(device)
        if peak_bytes:
            metrics["peak_memory_mib"] = peak_bytes >> 20
        metrics["seconds"] = round(progress.seconds, 3)
        return metrics

    def _begin_line(self, progress: Progress) -> None:
        self._seconds_at_line = progress.seconds
        self._tokens_at_line = progress.tokens
        self._data_seconds = 0.0
        self._paused_seconds = 0.0
        self.progress = progress._replace(metric_sums=())


def _activations(metrics: Metrics) -> Metrics:
    """The statistics of activations among a step's metrics, which forward hooks have put there."""
    return {name: value for name, value in metrics.items() if name.startswith(taps.STATS_PREFIX)}


def _to_host(pending: list[Metrics]) -> Iterator[dict[str, float]]:
    """Yields each step's metrics as numbers: those that all steps report, in their order."""
    if not pending:
        return
    names = [name for name in pending[0] if all(name in metrics for metrics in pending)]
    columns = [torch.stack([metrics[name] for metrics in pending]).tolist() for name in names]
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))


def _add_to_sums(
    sums: dict[str, tuple[float, float]], step_metrics: dict[str, float], weight: float
) -> None:
    """Adds one step to the sums; what is not finite is left out."""
    for name, value in step_metrics.items():
        if math.isfinite(value):
            own_weight = 1.0 if is_count(name) else weight
            total, total_weight = sums.get(name, (0.0, 0.0))
            sums[name] = (total + own_weight * value, total_weight + own_weight)


def _means(metric_sums: MetricSums) -> dict[str, float | None]:
    """Weighted means of all metrics that are not counts; None where every step was weightless."""
    return {
        name: total / weight if weight else None
        for name, total, weight in metric_sums
        if not is_count(name)
    }


def _counts(metric_sums: MetricSums) -> dict[str, int | float]:
    """Totals of counts, and the routes of the tokens of a dual feed-forward as shares too."""
    totals = {name: total for name, total, _ in metric_sums if name.startswith("num_")}
    counts: dict[str, int | float] = {name: round(total) for name, total in totals.items()}
    num_routed = sum(totals.get(f"num_{route}", 0.0) for route in ROUTES)
    if num_routed:
        for route in ROUTES:
            counts[f"{route}_share"] = totals.get(f"num_{route}", 0.0) / num_routed
    return counts
