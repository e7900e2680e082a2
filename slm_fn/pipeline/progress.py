"""Progress of stages that read files: a bar on a terminal, plain lines elsewhere.

Invariant: the share refers to the inputs' bytes on disk: exact at the end of each file, estimated
within it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from slm_fn.data.io.documents import Document

COMPRESSED_SUFFIXES = (".gz", ".zst", ".parquet")
BYTES_PER_CHARACTER_COMPRESSED = 0.35
"""Bytes on disk per character of compressed files, until a finished file gives the true ratio."""
MAX_NOTES = 100
"""How many lines of one kind are shown."""


class InputFile(NamedTuple):
    """A file to read: the name that its documents carry, and its size in bytes."""

    name: str
    size: int


class ProgressDisplay(NamedTuple):
    """Where progress is shown: `update(input bytes done, figures as text)` and `note(line)`."""

    update: Callable[[int, str], None]
    note: Callable[[str], None]


class InputProgress:
    """Counts how many bytes of the input files the documents read so far stand for.

    Example:
        >>> progress = InputProgress([InputFile("a.txt", 10), InputFile("b.txt", 30)])
        >>> documents = progress.watch([Document("a.txt", "x" * 9), Document("b.txt", "y")])
        >>> [(document.name, progress.done) for document in documents]
        [('a.txt', 9), ('b.txt', 11)]
    """

    def __init__(self, inputs: Sequence[InputFile]) -> None:
        self.inputs = inputs
        self.total = sum(file.size for file in inputs)
        self.done = 0
        self._file_index = 0
        self._bytes_before = 0
        self._characters_in_file = 0
        self._bytes_per_character: dict[str, float] = {}

    def watch(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yield the documents unchanged, with `done` up to date after each."""
        for document in documents:
            self._advance_to(document.name)
            self._characters_in_file += len(document.text)
            file = self.inputs[self._file_index]
            estimate = int(self._characters_in_file * self._ratio(file.name))
            self.done = self._bytes_before + min(file.size, estimate)
            yield document

    def _ratio(self, name: str) -> float:
        default = BYTES_PER_CHARACTER_COMPRESSED if _is_compressed(name) else 1.0
        return self._bytes_per_character.get(Path(name).suffix, default)

    def _advance_to(self, document: str) -> None:
        """Count the files before the document's file as read. An unlisted file changes nothing."""
        index = self._file_index
        while index < len(self.inputs) and not _comes_from(document, self.inputs[index].name):
            index += 1
        if index == len(self.inputs):
            return
        for file in self.inputs[self._file_index : index]:
            if self._characters_in_file:
                ratio = file.size / self._characters_in_file
                self._bytes_per_character[Path(file.name).suffix] = ratio
            self._bytes_before += file.size
            self._characters_in_file = 0
        self._file_index = index


def _comes_from(document: str, file: str) -> bool:
    """Whether a document's name is the file's own or `FILE:NUMBER`."""
    if not document.startswith(file):
        return False
    return len(document) == len(file) or document[len(file)] == ":"


def _is_compressed(name: str) -> bool:
    return name.lower().endswith(COMPRESSED_SUFFIXES)


@contextmanager
def show_progress(
    title: str, total: int | None, live: bool | None = None, seconds: float = 10.0
) -> Iterator[ProgressDisplay]:
    """A bar on a terminal, else a line of text at intervals.

    Args:
        total: bytes of all inputs; None where it is unknown, as of a stream: then without share and
            time left.
        live: whether to draw the bar; None asks whether standard error is a terminal.
        seconds: the interval between plain lines.
    """
    is_live = sys.stderr.isatty() if live is None else live
    if is_live:
        with _live_bar(title, total) as display:
            yield display
    else:
        yield _plain_lines(title, total, seconds)


@contextmanager
def _live_bar(title: str, total: int | None) -> Iterator[ProgressDisplay]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        ProgressColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    # Clocks keep their width: on a narrow terminal the figures are cut instead.
    columns: list[ProgressColumn] = [TextColumn("[bold]{task.description}")]
    if total is not None:
        columns += [BarColumn(10), TaskProgressColumn(), DownloadColumn()]
    columns.append(TimeElapsedColumn(table_column=Column(min_width=7)))
    if total is not None:
        columns.append(TextColumn("left"))
        columns.append(TimeRemainingColumn(table_column=Column(min_width=7)))
    columns.append(TextColumn("{task.fields[figures]}", markup=False))

    console = Console(stderr=True)
    with Progress(*columns, console=console, speed_estimate_period=60) as progress:
        task = progress.add_task(title, total=total, figures="")

        def update(done: int, figures: str) -> None:
            progress.update(task, completed=done, figures=figures)

        def note(line: str) -> None:
            progress.console.print(line, markup=False, highlight=False)

        yield ProgressDisplay(update, note)


def _plain_lines(title: str, total: int | None, seconds: float) -> ProgressDisplay:
    started = time.monotonic()
    last_line = started

    def update(done: int, figures: str) -> None:
        nonlocal last_line
        now = time.monotonic()
        if not done or now - last_line < seconds:
            return
        last_line = now
        if total is None:
            note(f"{title}: {figures}")
            return
        seconds_left = (now - started) * max(0, total - done) / done
        share = f"{done / max(1, total):.1%} of {total / 1e9:.2f} GB"
        note(f"{title}: {share}, {figures}, {format_duration(seconds_left)} left")

    def note(line: str) -> None:
        print(line, file=sys.stderr)

    return ProgressDisplay(update, note)


@contextmanager
def limit_notes(
    note: Callable[[str], None], limit: int = MAX_NOTES
) -> Iterator[Callable[[str], None]]:
    """Pass on the first `limit` lines; at the end, note how many more there were.

    Example:
        >>> with limit_notes(print, limit=1) as problem:
        ...     for line in ("one", "two", "three"):
        ...         problem(line)
        one
        and 2 more like these
    """
    num_notes = 0

    def limited(line: str) -> None:
        nonlocal num_notes
        num_notes += 1
        if num_notes <= limit:
            note(line)

    try:
        yield limited
    finally:
        if num_notes > limit:
            note(f"and {num_notes - limit:,} more like these")


def format_duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds.

    Example:
        >>> format_duration(59), format_duration(3725)
        ('0:00:59', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
