"""What stands in a line of the diary: means, counts and rates over the steps since the last one.

Metrics stay on the device until a line is due, so that the loop never waits for it between lines.

Invariant: but for `OF_THE_MACHINE` a line is a function of the run and its step: what an open line has gathered is in
`Progress`, which checkpoints keep, so a run that was stopped between two lines writes the same next one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from slm_fn.core import device as devices
from slm_fn.core import tree
from slm_fn.core.grads import is_count
from slm_fn.core.types import Metrics, TrainState
from slm_fn.lift.routing import ROUTES
from slm_fn.optim import measure
from slm_fn.optim.guard import SkipState
from slm_fn.optim.transforms import ScheduleState, find

Gathered = tuple[tuple[str, float, float], ...]
"""For each metric of an open line: its name, the sum of `weight * value`, and of `weight`; counts weigh one each."""


OF_THE_MACHINE = ("tok_per_s", "data_wait", "peak_memory_mib", "seconds")
"""What a line tells of this machine and its clock: all else is the same whenever a run is repeated or resumed."""


class Progress(NamedTuple):
    """Where a loop is: steps taken, batches read, targets seen, seconds spent, the best validation loss, an open line.

    `gathered` is what the steps since the last line of the diary have to tell.
    """

    step: int = 0
    position: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float | None = None
    gathered: Gathered = ()


class Meter:
    """Counts steps, tokens and seconds of one loop; the one mutable thing in it.

    Args:
        flops_per_token: of training; where it is known (not 0), lines tell what was spent.
    """

    def __init__(self, progress: Progress, flops_per_token: int = 0) -> None:
        self.progress, self.flops_per_token = progress, flops_per_token
        self.smooth, self.skipped = math.nan, 0.0
        self.pending: list[Metrics] = []
        self.began = time.perf_counter() - progress.seconds
        self.mark = (progress.seconds, progress.tokens)
        self.waited = self.away = 0.0

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches; how long each was waited for is told as `data_wait`."""
        source = iter(batches)
        while True:
            began = time.perf_counter()
            try:
                batch = next(source)
            except StopIteration:
                return
            self.waited += time.perf_counter() - began
            yield batch

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time that is no training: judging, sampling, saving. It counts as `seconds`, not against `tok_per_s`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.away += time.perf_counter() - began

    def advance(self, metrics: Metrics) -> Progress:
        """A step was taken; its metrics are kept where they are."""
        self.pending.append(metrics)
        self.progress = self.progress._replace(step=self.progress.step + 1, position=self.progress.position + 1)
        return self.progress

    def settle(self) -> Progress:
        """Read what is pending, which waits for the device, and add it to the open line."""
        columns = {name: torch.stack([row[name] for row in self.pending]).tolist() for name in _names(self.pending)}
        sums, tokens = {name: (total, w) for name, total, w in self.progress.gathered}, self.progress.tokens
        # One step after another, in double precision: where the sum was cut by a checkpoint changes no bit of it.
        for row in (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)):
            weight = row["weight"]
            tokens += round(row.get("tokens", weight))
            for name, value in row.items():
                if math.isfinite(value):
                    w = 1.0 if is_count(name) else weight
                    total, weights = sums.get(name, (0.0, 0.0))
                    sums[name] = (total + w * value, weights + w)
        self.pending.clear()
        seconds = time.perf_counter() - self.began
        gathered = tuple((name, total, w) for name, (total, w) in sums.items())
        self.progress = self.progress._replace(tokens=tokens, seconds=seconds, gathered=gathered)
        return self.progress

    def line(self, state: TrainState, seen: Metrics) -> dict[str, Any]:
        """Close the open line: what INTERFACE calls a line of `metrics.jsonl`.

        Args:
            seen: what hooks saw at this very step.
        """
        now = self.settle()
        means = {name: total / w if w else None for name, total, w in now.gathered if not is_count(name)}
        counts = _counts({name: total for name, total, _ in now.gathered if name.startswith("num_")})
        loss = means.pop("loss", None)
        if loss is not None:
            self.smooth = loss if math.isnan(self.smooth) else 0.5 * self.smooth + 0.5 * loss
        rate, skip = find(state.opt_state, ScheduleState), find(state.opt_state, SkipState)
        self.skipped = int(skip.skipped) / now.step if skip else 0.0
        seconds, tokens = now.seconds - self.mark[0], now.tokens - self.mark[1]
        peak = devices.peak_memory(tree.leaves(state.params)[0].device)
        row = {
            "step": now.step,
            "tokens": now.tokens,
            **({"flops": now.tokens * self.flops_per_token} if self.flops_per_token else {}),
            "train_loss": loss,
            **({"lr": float(rate.rate)} if rate else {}),
            **means,
            **counts,
            **({"skipped": int(skip.skipped)} if skip else {}),
            **{name: float(value) for name, value in {**measure.read(state.opt_state), **seen}.items()},
            "tok_per_s": round(tokens / max(seconds - self.away, 1e-9), 1),
            "data_wait": round(self.waited / max(seconds - self.away, 1e-9), 4),
            **({"peak_memory_mib": peak >> 20} if peak else {}),
            "seconds": round(now.seconds, 3),
        }
        self.mark, self.waited, self.away = (now.seconds, now.tokens), 0.0, 0.0
        self.progress = now._replace(gathered=())
        return row

    def judge(self, figures: dict[str, float]) -> None:
        """Keep the lowest validation loss."""
        value, best = figures.get("val_loss"), self.progress.best
        if value is not None and (best is None or value < best):
            self.progress = self.progress._replace(best=value)


def _counts(totals: dict[str, float]) -> dict[str, int | float]:
    """Counts as they are, and what became of the tokens of a dual feed-forward as shares too."""
    routed = sum(totals.get(f"num_{route}", 0.0) for route in ROUTES)
    shares = {f"{route}_share": totals.get(f"num_{route}", 0.0) / routed for route in ROUTES} if routed else {}
    return {**{name: round(total) for name, total in totals.items()}, **shares}


def _names(rows: list[Metrics]) -> list[str]:
    """What every step tells, in its order."""
    return [name for name in rows[0] if all(name in row for row in rows)] if rows else []
