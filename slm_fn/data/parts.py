"""The folder of one prepared source: part files, what tells duplicates, a journal, and at the end its metadata.

    part_00000.jsonl ...   part_00000.dedup.safetensors ...   state.json (while unfinished)   metadata.json (at the end)

Conversations are in part_00000.chat.jsonl, pairs in part_00000.pairs.jsonl, which reading a folder's texts passes over.

Input is taken by the block: so many bytes or rows of it. What a block leaves is a part file; then the digests of what
was kept are written, then the journal, which says how many rows are behind. A process that is killed leaves the journal
of the last whole block, and the next one goes on there: what it writes over is what would have been written.

Invariant: the files depend on rows and settings alone, so a source that was killed at any moment and run again leaves
the bytes of one that never was.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import safetensors.numpy

from slm_fn.core import files
from slm_fn.data import hub
from slm_fn.data.clean import CHANGED
from slm_fn.data.dedup import Index
from slm_fn.data.intake import Row
from slm_fn.data.minhash import DedupConfig
from slm_fn.data.refine import Refined

FORMAT_VERSION = 1
STATE, METADATA, DIGESTS = "state.json", "metadata.json", ".dedup.safetensors"
BLOCK_ROWS = 1 << 16
"""A block ends here too: rows that hold next to nothing must not fill the memory."""
TOLD_ROWS = 256
EXACT, NEAR = "duplicate: exact", "duplicate: near"
_SUMS = ("read", "kept", "changed", "bytes_read", "bytes_kept", "problems")
S = TypeVar("S", bound=msgspec.Struct)


class Part(msgspec.Struct, frozen=True):
    """One file of JSONL; `bytes` are those of the file."""

    file: str
    documents: int
    bytes: int
    sha256: str


class Counts(msgspec.Struct, frozen=True):
    """What became of a source's documents: `read` is `kept` and everything under `removed`.

    Bytes are those of the texts in UTF-8. `changed` were kept after a rule had edited them; `problems` are what could
    not be read, `dropped` what the chat converter repaired or turned down, by reason: neither is among `read`.
    """

    read: int = 0
    kept: int = 0
    changed: int = 0
    bytes_read: int = 0
    bytes_kept: int = 0
    problems: int = 0
    removed: dict[str, int] = {}
    dropped: dict[str, int] = {}


class State(msgspec.Struct, frozen=True):
    """The journal: what is made of what, rows behind, whether a limit was reached, parts written, and counts."""

    settings: dict[str, Any]
    source: dict[str, Any]
    rows: int = 0
    full: bool = False
    place: hub.Place | None = None
    parts: tuple[Part, ...] = ()
    counts: Counts = Counts()


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """What `metadata.json` says of a finished source; `digest` is the SHA-256 of `settings`."""

    format_version: int = FORMAT_VERSION
    name: str
    digest: str
    settings: dict[str, Any]
    source: dict[str, Any]
    counts: Counts
    tokens_estimated: int
    parts: tuple[Part, ...]
    versions: dict[str, str]


class Limits(NamedTuple):
    """Where a source ends; None is nowhere."""

    documents: int | None = None
    bytes: int | None = None


class Kept:
    """What all sources have kept so far, to tell duplicates by. One owner adds to it."""

    def __init__(self, near: DedupConfig) -> None:
        self.digests: set[bytes] = set()
        self.near = Index(near)

    def seen(self, found: Refined) -> str | None:
        """Why an item is a duplicate, or None, and then it is remembered."""
        if found.sketch is None:
            return None
        digest, signature = found.sketch
        if digest in self.digests:
            return EXACT
        if len(signature):
            if self.near.seen(found.sketch):
                return NEAR
            self.near.add(found.sketch)
        self.digests.add(digest)
        return None

    def extend(self, folders: Iterable[Path]) -> None:
        """Remember what the parts of these folders kept."""
        near = []
        for file in (file for folder in folders for file in sorted(folder.glob(f"part_*{DIGESTS}"))):
            saved = safetensors.numpy.load(file.read_bytes())
            self.digests.update(row.tobytes() for row in saved["digests"])
            if "signatures" in saved:
                near.append(saved)
        self.near.extend(*near)


class _Block:
    """What a block of input leaves, as it fills; counts go on from those of the blocks before."""

    def __init__(self, before: Counts) -> None:
        self.lines: list[bytes] = []
        self.digests: list[bytes] = []
        self.rows, self.full = 0, False
        self.place: hub.Place | None = None
        self.sums = Counter({name: getattr(before, name) for name in _SUMS})
        self.removed, self.dropped = Counter(before.removed), Counter(before.dropped)

    def take(self, row: Row, found: Refined, kept: Kept) -> None:
        self.rows += 1
        self.place = row.place or self.place
        self.sums["problems"] += len(row.problems)
        self.dropped.update(row.dropped)
        if row.item is None:
            return
        self.sums.update(read=1, bytes_read=found.size)
        why = found.why if found.line is None else kept.seen(found)
        if found.line is None or why is not None:
            self.removed[why or ""] += 1
            return
        self.lines.append(found.line)
        self.digests += [] if found.sketch is None else [found.sketch.digest]
        self.sums.update(kept=1, changed=found.why == CHANGED, bytes_kept=found.left)

    def counts(self) -> Counts:
        sums = {name: self.sums[name] for name in _SUMS}
        return Counts(**sums, removed=dict(sorted(self.removed.items())), dropped=dict(sorted(self.dropped.items())))


def run(
    folder: Path,
    state: State,
    ending: str,
    rows: Callable[[int], Generator[tuple[Row, Refined], None, None]],
    kept: Kept,
    limits: Limits,
    block_bytes: int,
    tell: Callable[[str], None],
    progress: Callable[[Counts], None],
) -> State:
    """Write what `rows` (from the n-th on) leaves into the folder, going on from `state`, which `standing` has given.

    An error of the rows goes up and leaves what whole blocks gave; `kept` then knows more than the disk does.

    Args:
        ending: of the part files.
        tell: takes a line for each thing that could not be read.
        progress: is told the counts now and then.
    """
    if state.rows == 0:
        files.write(folder / STATE, _json(state))
    with closing(rows(state.rows)) as stream:
        ended = state.full
        while not ended:
            first_near = len(kept.near)
            block = _fill(stream, state.counts, kept, limits, block_bytes, tell, progress)
            ended = block.full or block.rows == 0
            state = _commit(folder, state, ending, block, kept.near.save(first_near))
    return state


def _fill(
    stream: Iterator[tuple[Row, Refined]],
    before: Counts,
    kept: Kept,
    limits: Limits,
    block_bytes: int,
    tell: Callable[[str], None],
    progress: Callable[[Counts], None],
) -> _Block:
    """A block of rows, full where a limit ends the source; the document that would go beyond is not taken."""
    block, end = _Block(before), before.bytes_read + block_bytes
    while block.rows < BLOCK_ROWS and block.sums["bytes_read"] < end:
        if limits.documents is not None and block.sums["kept"] >= limits.documents:
            block.full = True
            break
        row, found = next(stream, (None, None))
        if row is None or found is None:
            break
        if limits.bytes is not None and found.line and block.sums["bytes_kept"] + found.left > limits.bytes:
            block.full = True
            break
        block.take(row, found, kept)
        for problem in row.problems:
            tell(problem)
        if block.rows % TOLD_ROWS == 0:
            progress(block.counts())
    return block


def _commit(folder: Path, state: State, ending: str, block: _Block, near: Mapping[str, np.ndarray]) -> State:
    """The block's part, its digests, then the journal that tells of them: in this order a kill loses nothing."""
    parts, place = state.parts, block.place or state.place
    if block.lines:
        stem, data = f"part_{len(parts):05d}", b"".join(block.lines)
        files.write(folder / f"{stem}{ending}", data)
        if block.digests:
            digests = np.frombuffer(b"".join(block.digests), np.uint8).reshape(len(block.digests), -1)
            told = dict(near) if len(near["digests"]) else {"digests": digests}
            files.write(folder / f"{stem}{DIGESTS}", safetensors.numpy.save(told))
        parts = (*parts, Part(f"{stem}{ending}", len(block.lines), len(data), hashlib.sha256(data).hexdigest()))
    after = State(state.settings, state.source, state.rows + block.rows, block.full, place, parts, block.counts())
    files.write(folder / STATE, _json(after))
    return after


def finish(folder: Path, metadata: Metadata) -> Metadata:
    """Write the metadata; from then on the source is finished, and its journal goes."""
    files.write(folder / METADATA, _json(metadata))
    (folder / STATE).unlink(missing_ok=True)
    return metadata


def standing(folder: Path) -> Metadata | State | None:
    """What a folder holds: a finished source, one under way, or nothing.

    What a killed process left that no journal tells of goes, before anybody takes its digests for those of kept texts.

    Raises:
        ValueError: files that are no prepared source, or a journal that cannot be read.
    """
    if not folder.is_dir():
        return None
    files.sweep(folder)
    metadata = _read(folder / METADATA, Metadata)
    if metadata is not None:
        (folder / STATE).unlink(missing_ok=True)
        return metadata
    state = _read(folder / STATE, State)
    if state is None:
        if not any(folder.iterdir()):
            return None
        raise ValueError(f"{folder} holds files that are no prepared source; take another --out, or another name")
    for file in folder.glob("part_*"):
        if int(file.name[5:10]) >= len(state.parts):
            file.unlink()
    return state


def discard(folder: Path) -> None:
    """Remove a source's folder; a kill half-way leaves a temporary one that `files.sweep` removes."""
    if folder.is_dir():
        aside = folder.with_name(f"{files.TEMPORARY}old-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)
        shutil.rmtree(aside)


def _json(value: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value, order="deterministic"), indent=2) + b"\n"


def _read(path: Path, kind: type[S]) -> S | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} does not read: {error}; remove the folder {path.parent} and run again") from None
