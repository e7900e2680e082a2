"""A run's diary: run.json, metrics.jsonl, samples.jsonl, and the progress a person watches.

Invariant: after a resume at step k the diary holds no line beyond k, so it reads as if never interrupted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import msgspec

from slm_fn.core import files

METRICS, SAMPLES, RUN = "metrics.jsonl", "samples.jsonl", "run.json"
WIDE = 100
"""Columns of a terminal from which there is room for a bar beside its figures."""


def rewind(run: Path, step: int) -> None:
    """Drop what the diary says of later steps; a line cut short by a crash goes too."""
    for name in (METRICS, SAMPLES):
        path = run / name
        if path.is_file():
            lines = [line for line in path.read_bytes().splitlines(keepends=True) if _step_of(line) <= step]
            files.write(path, b"".join(lines))


def _step_of(line: bytes) -> float | int:
    try:
        return msgspec.json.decode(line)["step"] if line.endswith(b"\n") else float("inf")
    except (msgspec.DecodeError, KeyError, TypeError):
        return float("inf")


def append(path: Path, row: dict[str, Any]) -> None:
    """One JSON object on a line of its own."""
    with open(path, "ab") as file:
        file.write(msgspec.json.encode(row) + b"\n")


def tell(run: Path, **told: Any) -> None:
    """Write values of run.json anew, as `status`; the others stay."""
    path = run / RUN
    before = msgspec.json.decode(path.read_bytes())
    files.write(path, msgspec.json.format(msgspec.json.encode({**before, **told})) + b"\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a `.jsonl` diary."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    return [msgspec.json.decode(line) for line in lines if _step_of(line) != float("inf")]


@runtime_checkable
class Display(Protocol):
    """What shows progress: a live bar, or plain lines."""

    def update(self, step: int, row: dict[str, float]) -> None:
        """A step was taken; `row` holds smoothed loss, lr, tok/s, and the share of skipped steps once there are any."""

    def note(self, text: str) -> None:
        """A line among the progress: a checkpoint, a validation, a sample."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Plain:
    """Lines for a file or a pipe, at most one every `seconds`."""

    def __init__(self, title: str, total: int, seconds: float = 5.0, write: Callable[[str], Any] | None = None) -> None:
        self.title, self.total, self.seconds = title, total, seconds
        self.write = write or (lambda line: print(line, file=sys.stderr, flush=True))
        self.last = time.monotonic()

    def update(self, step: int, row: dict[str, float]) -> None:
        now = time.monotonic()
        if now - self.last >= self.seconds or step == self.total:
            self.last = now
            self.write(f"{self.title} {step}/{self.total} ({100 * step / self.total:.0f} %)  {describe(row)}")

    def note(self, text: str) -> None:
        self.write(f"{self.title}: {text}")

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class Live:
    """A Rich bar where there is room, %, elapsed, time left, smoothed loss, lr, tok/s; notes scroll above it."""

    def __init__(self, title: str, total: int) -> None:
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
        bar = (BarColumn(20),) if console.width >= WIDE else ()
        columns = (TextColumn("[bold]{task.description}"), *bar, TaskProgressColumn(), MofNCompleteColumn())
        # On a narrow terminal the figures are cut, not the clocks.
        spent, left = (kind(table_column=Column(min_width=7)) for kind in (TimeElapsedColumn, TimeRemainingColumn))
        clocks = (spent, TextColumn("left"), left, TextColumn("{task.fields[row]}"))
        self.progress = Progress(*columns, *clocks, console=console, speed_estimate_period=20)
        self.task = self.progress.add_task(title, total=total, row="")

    def update(self, step: int, row: dict[str, float]) -> None:
        self.progress.update(self.task, completed=step, row=describe(row))

    def note(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False)

    def __enter__(self) -> Live:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()


def display(title: str, total: int, live: bool | None = None) -> Display:
    """A live bar on a terminal, plain lines elsewhere (or as told)."""
    return Live(title, total) if (sys.stderr.isatty() if live is None else live) else Plain(title, total)


def describe(row: dict[str, float]) -> str:
    """A short line of figures.

    Example:
        >>> describe({"loss": 2.345678, "lr": 0.001, "tok_per_s": 12345.6})
        'loss 2.346  lr 1.0e-03  12,346 tok/s'
    """
    forms = {"loss": "loss {:.3f}", "lr": "lr {:.1e}", "tok_per_s": "{:,.0f} tok/s", "skipped": "{:.1%} skipped"}
    return "  ".join(form.format(row[name]) for name, form in forms.items() if name in row)
