"""Progress of a stage that reads files: a bar on a terminal, plain lines elsewhere, all on standard error.

Invariant: the share is of the inputs' bytes on the disk, exact at the end of each file and estimated within it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from slm_fn.data.sources import Document

COMPRESSED = 0.35
"""Bytes on the disk per character in gz, zst and parquet, until a file that was read has told better."""


NOTES = 100
"""Lines of one kind that a person is shown."""


class Input(NamedTuple):
    """A file to read: the name its documents carry, and its size in bytes."""

    name: str
    size: int


class Display(NamedTuple):
    """`update(bytes of input done, what else to say)` and `note(line)`."""

    update: Callable[[int, str], None]
    note: Callable[[str], None]


class Meter:
    """Watches documents go by and says how many bytes of the inputs they stand for.

    Example:
        >>> meter = Meter([Input("a.txt", 10), Input("b.txt", 30)])
        >>> documents = meter.watch([Document("a.txt", "x" * 9), Document("b.txt", "y")])
        >>> [(document.name, meter.done) for document in documents]
        [('a.txt', 9), ('b.txt', 11)]
    """

    def __init__(self, inputs: Sequence[Input]) -> None:
        self.inputs, self.total = inputs, sum(file.size for file in inputs)
        self.done = self._before = self._here = self._place = 0
        self._share: dict[str, float] = {}

    def watch(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The documents, unchanged."""
        for document in documents:
            self._turn_to(document.name)
            self._here += len(document.text)
            file = self.inputs[self._place]
            share = self._share.get(Path(file.name).suffix, COMPRESSED if _is_compressed(file.name) else 1.0)
            self.done = self._before + min(file.size, int(self._here * share))
            yield document

    def _turn_to(self, name: str) -> None:
        """Count the files before this one as read."""
        here = self._place
        while here < len(self.inputs) and not _comes_from(name, self.inputs[here].name):
            here += 1
        if here == len(self.inputs):  # of a file that is not listed: stay
            return
        for file in self.inputs[self._place : here]:
            if self._here:
                self._share[Path(file.name).suffix] = file.size / self._here
            self._before, self._here = self._before + file.size, 0
        self._place = here


def _comes_from(document: str, file: str) -> bool:
    return document.startswith(file) and (len(document) == len(file) or document[len(file)] == ":")


def _is_compressed(name: str) -> bool:
    return name.lower().endswith((".gz", ".zst", ".parquet"))


@contextmanager
def display(title: str, total: int | None, live: bool | None = None, seconds: float = 10.0) -> Iterator[Display]:
    """A bar where standard error is a terminal (or `live` says so), else a line every so many seconds.

    Where nobody knows the total in bytes, as of a stream (None), there is no bar, no share and no time left.
    """
    if sys.stderr.isatty() if live is None else live:
        with _bar(title, total) as shown:
            yield shown
    else:
        yield _lines(title, total, seconds)


@contextmanager
def _bar(title: str, total: int | None) -> Iterator[Display]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    name, figures = TextColumn("[bold]{task.description}"), TextColumn("{task.fields[figures]}", markup=False)
    bar = () if total is None else (BarColumn(10), TaskProgressColumn(), DownloadColumn())
    # On a narrow terminal the figures are cut, not the clocks.
    left = () if total is None else (TextColumn("left"), TimeRemainingColumn(table_column=Column(min_width=7)))
    columns = (name, *bar, TimeElapsedColumn(table_column=Column(min_width=7)), *left, figures)
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=60) as progress:
        task = progress.add_task(title, total=total, figures="")
        yield Display(
            lambda done, figures: progress.update(task, completed=done, figures=figures),
            lambda line: progress.console.print(line, markup=False, highlight=False),
        )


def _lines(title: str, total: int | None, seconds: float) -> Display:
    began = told = time.monotonic()

    def update(done: int, figures: str) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= seconds and done:
            told = now
            if total is None:
                print(f"{title}: {figures}", file=sys.stderr)
                return
            left = (now - began) * max(0, total - done) / done
            share = f"{done / max(1, total):.1%} of {total / 1e9:.2f} GB"
            print(f"{title}: {share}, {figures}, {clock(left)} left", file=sys.stderr)

    return Display(update, lambda line: print(line, file=sys.stderr))


@contextmanager
def counted(note: Callable[[str], None], most: int = NOTES) -> Iterator[Callable[[str], None]]:
    """Takes lines of which there may be a million: says the first of them, and at the end how many more there were.

    Example:
        >>> with counted(print, most=1) as problem:
        ...     for line in ("one", "two", "three"):
        ...         problem(line)
        one
        and 2 more like these
    """
    told = 0

    def say(line: str) -> None:
        nonlocal told
        told += 1
        if told <= most:
            note(line)

    try:
        yield say
    finally:
        if told > most:
            note(f"and {told - most:,} more like these")


def clock(seconds: float) -> str:
    """A duration for a person.

    Example:
        >>> clock(59), clock(3725)
        ('0:00:59', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
