"""The progress of a training run on a terminal: a live bar, or plain lines.

Invariant: all of it goes to standard error, so that standard output stays for results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

BAR_COLUMNS = 100
"""Columns of a terminal from which there is room for a bar beside its figures."""
FORMATS = {
    "loss": "loss {:.3f}",
    "lr": "lr {:.1e}",
    "tok_per_s": "{:,.0f} tok/s",
    "skipped": "{:.1%} skipped",
}


@runtime_checkable
class TrainDisplay(Protocol):
    """Shows the progress of a training run."""

    def update(self, step: int, figures: dict[str, float]) -> None:
        """Shows how far the run is.

        Args:
            step: steps taken.
            figures: smoothed loss, lr, tok_per_s, and the share of skipped steps if there are any.
        """

    def note(self, text: str) -> None:
        """Shows a line among the progress: a checkpoint, a validation, a sample."""

    def __enter__(self) -> TrainDisplay: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class PlainDisplay:
    """Lines for a file or a pipe, at most one every `seconds`.

    Args:
        title: what is trained; each line begins with it.
        total_steps: steps of the run.
        seconds: the least time between two lines of progress; notes and the last step are always
            shown.
        write: receives each line; by default it is printed to standard error.
    """

    def __init__(
        self,
        title: str,
        total_steps: int,
        seconds: float = 5.0,
        write: Callable[[str], Any] | None = None,
    ) -> None:
        self.title = title
        self.total_steps = total_steps
        self.seconds = seconds
        self.write = write or _print_to_stderr
        self.last_time = time.monotonic()

    def update(self, step: int, figures: dict[str, float]) -> None:
        now = time.monotonic()
        if now - self.last_time >= self.seconds or step == self.total_steps:
            self.last_time = now
            percent = 100 * step / self.total_steps
            progress = f"{self.title} {step}/{self.total_steps} ({percent:.0f} %)"
            self.write(f"{progress}  {format_figures(figures)}")

    def note(self, text: str) -> None:
        self.write(f"{self.title}: {text}")

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class LiveDisplay:
    """A progress bar by Rich; notes scroll above it.

    It shows a bar where there is room, %, elapsed, time left, smoothed loss, lr and tok/s.

    Args:
        title: what is trained.
        total_steps: steps of the run.
    """

    def __init__(self, title: str, total_steps: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.table import Column

        console = Console(stderr=True)
        bar = (BarColumn(20),) if console.width >= BAR_COLUMNS else ()
        # On a narrow terminal the figures are cut, not the clocks.
        elapsed = TimeElapsedColumn(table_column=Column(min_width=7))
        remaining = TimeRemainingColumn(table_column=Column(min_width=7))
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            *bar,
            TaskProgressColumn(),
            MofNCompleteColumn(),
            elapsed,
            TextColumn("left"),
            remaining,
            TextColumn("{task.fields[figures]}"),
            console=console,
            speed_estimate_period=20,
        )
        self.task = self.progress.add_task(title, total=total_steps, figures="")

    def update(self, step: int, figures: dict[str, float]) -> None:
        self.progress.update(self.task, completed=step, figures=format_figures(figures))

    def note(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False)

    def __enter__(self) -> LiveDisplay:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()


def make_display(title: str, total_steps: int, live: bool | None = None) -> TrainDisplay:
    """Returns a live bar on a terminal and plain lines elsewhere, or as `live` says."""
    if live is None:
        live = sys.stderr.isatty()
    return LiveDisplay(title, total_steps) if live else PlainDisplay(title, total_steps)


def make_silent_display(title: str, total_steps: int) -> TrainDisplay:
    """Returns a display that shows nothing."""
    return PlainDisplay(title, total_steps, write=lambda line: None)


def format_figures(figures: dict[str, float]) -> str:
    """Returns a short line of figures.

    Example:
        >>> format_figures({"loss": 2.345678, "lr": 0.001, "tok_per_s": 12345.6})
        'loss 2.346  lr 1.0e-03  12,346 tok/s'
    """
    return "  ".join(
        template.format(figures[name]) for name, template in FORMATS.items() if name in figures
    )


def _print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
