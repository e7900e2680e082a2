"""The part files of one prepared source, written block by block so that a kill loses one block.

Input is taken in blocks of so many bytes or rows. What a block keeps is written as a part file,
then the digests of what was kept, then the journal, which says how many rows are done. A process
that is killed leaves the journal of the last complete block, and the next one resumes there: what
it overwrites is what would have been written.

Invariant: the files depend on rows and settings alone, so a source that was killed at any moment
and run again has the same bytes as one that never was.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slm_fn.core import files
from slm_fn.data.clean.cleaning import CHANGED
from slm_fn.data.corpus.clean_worker import CleanedItem
from slm_fn.data.corpus.duplicates import DIGESTS, DuplicateIndex, save_digests
from slm_fn.data.corpus.source_folder import (
    PartFile,
    SourceCounts,
    SourceState,
    save_state,
)
from slm_fn.data.corpus.source_rows import SourceRow
from slm_fn.data.io.hub import StreamCursor
from slm_fn.data.io.problems import OnProblem

BLOCK_ROWS = 1 << 16
"""A block ends here too: rows that contain almost nothing must not fill the memory."""
PROGRESS_ROWS = 256
_SUMS = ("read", "kept", "changed", "bytes_read", "bytes_kept", "problems")

CleanedRow = tuple[SourceRow, CleanedItem]
OpenRows = Callable[[int], Generator[CleanedRow, None, None]]
"""Returns the cleaned rows of a source from the n-th on."""


class SourceLimits(NamedTuple):
    """Where a source ends: the most documents and bytes of text to keep; None is unlimited."""

    documents: int | None = None
    bytes: int | None = None


class PartSettings(NamedTuple):
    """How part files are written.

    Attributes:
        suffix: what the names of part files end in.
        limits: where the source ends.
        block_bytes: the bytes of input behind each part file.
        on_problem: receives one line for each input that could not be read.
        on_progress: receives the counts every `PROGRESS_ROWS` rows.
    """

    suffix: str
    limits: SourceLimits
    block_bytes: int
    on_problem: OnProblem
    on_progress: Callable[[SourceCounts], None]


def write_parts(
    folder: Path,
    state: SourceState,
    open_rows: OpenRows,
    duplicates: DuplicateIndex,
    settings: PartSettings,
) -> SourceState:
    """Write what a source's rows keep into its folder, resuming from `state`.

    An error of the rows propagates and leaves what complete blocks gave; `duplicates` then
    contains more than the disk does.

    Args:
        state: as `source_folder.load` returned it, or a new one.
        open_rows: returns the source's rows from the n-th on.
        duplicates: what all sources kept so far.

    Returns:
        The state at the end of the source.
    """
    if state.rows == 0:
        save_state(folder, state)
    with closing(open_rows(state.rows)) as rows:
        has_ended = state.limit_reached
        while not has_ended:
            first_near = len(duplicates.near)
            block = _fill_block(rows, state.counts, duplicates, settings)
            has_ended = block.limit_reached or block.num_rows == 0
            near = duplicates.near.to_arrays(first_near)
            state = _commit(folder, state, settings.suffix, block, near)
    return state


class _Block:
    """What a block of input keeps, while it fills; its counts continue those before it."""

    def __init__(self, before: SourceCounts) -> None:
        self.lines: list[bytes] = []
        self.digests: list[bytes] = []
        self.num_rows = 0
        self.limit_reached = False
        self.cursor: StreamCursor | None = None
        self.sums = Counter({name: getattr(before, name) for name in _SUMS})
        self.removed = Counter(before.removed)
        self.dropped = Counter(before.dropped)

    def add(self, row: SourceRow, cleaned: CleanedItem, duplicates: DuplicateIndex) -> None:
        """Count a row, and keep its item unless a rule removed it or it is a duplicate."""
        self.num_rows += 1
        self.cursor = row.cursor or self.cursor
        self.sums["problems"] += len(row.problems)
        self.dropped.update(row.dropped)
        if row.item is None:
            return
        self.sums.update(read=1, bytes_read=cleaned.num_bytes)
        if cleaned.line is None:
            self.removed[cleaned.reason] += 1
            return
        duplicate = duplicates.check_and_add(cleaned.sketch)
        if duplicate is not None:
            self.removed[duplicate] += 1
            return
        self.lines.append(cleaned.line)
        if cleaned.sketch is not None:
            self.digests.append(cleaned.sketch.digest)
        is_changed = cleaned.reason == CHANGED
        self.sums.update(kept=1, changed=is_changed, bytes_kept=cleaned.num_bytes_kept)

    def counts(self) -> SourceCounts:
        """Return the counts of the source up to the end of this block."""
        sums = {name: self.sums[name] for name in _SUMS}
        return SourceCounts(
            **sums,
            removed=dict(sorted(self.removed.items())),
            dropped=dict(sorted(self.dropped.items())),
        )


def _fill_block(
    rows: Iterator[CleanedRow],
    before: SourceCounts,
    duplicates: DuplicateIndex,
    settings: PartSettings,
) -> _Block:
    """Take a block of rows; the document that would exceed a limit of the source is not taken."""
    block = _Block(before)
    limits = settings.limits
    end = before.bytes_read + settings.block_bytes
    while block.num_rows < BLOCK_ROWS and block.sums["bytes_read"] < end:
        if limits.documents is not None and block.sums["kept"] >= limits.documents:
            block.limit_reached = True
            break
        cleaned_row = next(rows, None)
        if cleaned_row is None:
            break
        row, cleaned = cleaned_row
        if _would_exceed(limits, block, cleaned):
            block.limit_reached = True
            break
        block.add(row, cleaned, duplicates)
        for problem in row.problems:
            settings.on_problem(problem)
        if block.num_rows % PROGRESS_ROWS == 0:
            settings.on_progress(block.counts())
    return block


def _would_exceed(limits: SourceLimits, block: _Block, cleaned: CleanedItem) -> bool:
    if limits.bytes is None or cleaned.line is None:
        return False
    return block.sums["bytes_kept"] + cleaned.num_bytes_kept > limits.bytes


def _commit(
    folder: Path, state: SourceState, suffix: str, block: _Block, near: Mapping[str, np.ndarray]
) -> SourceState:
    """Write a block's part file, its digests, and the journal, in this order: a kill loses nothing.

    Only the journal makes the files before it count.
    """
    parts = state.parts
    if block.lines:
        stem = f"part_{len(parts):05d}"
        name = f"{stem}{suffix}"
        data = b"".join(block.lines)
        files.write(folder / name, data)
        if block.digests:
            save_digests(folder / f"{stem}{DIGESTS}", block.digests, near)
        part = PartFile(
            file=name,
            documents=len(block.lines),
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        parts = (*parts, part)
    after = SourceState(
        state.settings,
        state.source,
        rows=state.rows + block.num_rows,
        limit_reached=block.limit_reached,
        cursor=block.cursor or state.cursor,
        parts=parts,
        counts=block.counts(),
    )
    save_state(folder, after)
    return after
