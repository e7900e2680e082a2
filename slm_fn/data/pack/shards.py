"""Shards while they are written: tokens appended and hashed, and a journal to resume from.

Invariant: everything that the journal names is on the disk; what lies beyond it is cut off before
writing resumes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from slm_fn.core import files
from slm_fn.data.io.holdout import PreviousChunk

SPLITS = ("train", "val")
JOURNAL = "journal.json"
NEW_PACK = "new"
"""The folder in a packer's working folder that becomes the pack."""
HASH_BLOCK = 1 << 20


class Shard(msgspec.Struct, frozen=True):
    """One file of tokens."""

    file: str
    tokens: int
    sha256: str


class SplitState(msgspec.Struct, frozen=True):
    """Progress of a split: its full shards, the tokens in the open one, and its documents."""

    shards: tuple[Shard, ...] = ()
    open_tokens: int = 0
    documents: int = 0
    num_bytes: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of full shards and of the open one."""
        return sum(shard.tokens for shard in self.shards) + self.open_tokens


def _empty_splits() -> dict[str, SplitState]:
    return {name: SplitState() for name in SPLITS}


class Journal(msgspec.Struct, frozen=True):
    """Progress of a packer: chunks read, the last of them, held-out names met, and both splits."""

    num_chunks: int = msgspec.field(default=0, name="pieces")
    previous: PreviousChunk = msgspec.field(default=PreviousChunk(), name="last")
    names_met: tuple[str, ...] = msgspec.field(default=(), name="found")
    splits: dict[str, SplitState] = msgspec.field(default_factory=_empty_splits)

    @property
    def tokens(self) -> int:
        """Tokens of both splits."""
        return sum(split.tokens for split in self.splits.values())


class ShardWriter:
    """Appends tokens to the shards of one split and hashes them, resuming from a state."""

    def __init__(
        self, root: Path, split: str, dtype: str, shard_size: int, state: SplitState
    ) -> None:
        self.root = root
        self.split = split
        self.dtype = np.dtype(dtype)
        self.shard_size = shard_size
        self.shards = list(state.shards)
        self.documents = state.documents
        self.num_bytes = state.num_bytes
        self.file: BinaryIO | None = None
        self.open_tokens = 0
        self.hash = hashlib.sha256()
        if state.open_tokens:
            self._reopen(state.open_tokens)

    @property
    def tokens(self) -> int:
        """Tokens appended so far."""
        return sum(shard.tokens for shard in self.shards) + self.open_tokens

    @property
    def name(self) -> str:
        """The open shard's file, relative to the pack."""
        return shard_name(self.split, len(self.shards))

    def append(self, ids: np.ndarray, documents: int, num_bytes: int) -> None:
        """Append tokens.

        Args:
            ids: in the dtype of the disk.
            documents: documents that start among them.
            num_bytes: bytes of their text.
        """
        self.documents += documents
        self.num_bytes += num_bytes
        while len(ids):
            if self.file is None:
                (self.root / self.split).mkdir(exist_ok=True)
                self.file = (self.root / self.name).open("wb")
            room = self.shard_size - self.open_tokens
            head = ids[:room]
            ids = ids[room:]
            self.file.write(head.data)
            self.hash.update(head.data)
            self.open_tokens += len(head)
            if self.open_tokens == self.shard_size:
                self.close()

    def state(self) -> SplitState:
        """The split's progress; everything up to it is flushed to the disk first."""
        if self.file is not None:
            _flush(self.file)
        return SplitState(tuple(self.shards), self.open_tokens, self.documents, self.num_bytes)

    def close(self) -> None:
        """Finish the open shard, if there is one."""
        if self.file is None:
            return
        _flush(self.file)
        self.file.close()
        self.shards.append(Shard(self.name, self.open_tokens, self.hash.hexdigest()))
        self.file = None
        self.open_tokens = 0
        self.hash = hashlib.sha256()

    def abandon(self) -> None:
        """Close the file without finishing its shard."""
        if self.file is not None:
            self.file.close()

    def _reopen(self, num_tokens: int) -> None:
        """Truncate the open shard to its first `num_tokens`, and hash those."""
        self.file = (self.root / self.name).open("rb+")
        bytes_left = num_tokens * self.dtype.itemsize
        self.file.truncate(bytes_left)
        while bytes_left:
            block = self.file.read(min(bytes_left, HASH_BLOCK))
            self.hash.update(block)
            bytes_left -= len(block)
        self.open_tokens = num_tokens


def shard_name(split: str, number: int) -> str:
    """A shard's file, relative to the pack.

    Example:
        >>> shard_name("train", 3)
        'train/shard_00003.bin'
    """
    return f"{split}/shard_{number:05d}.bin"


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def save(work: Path, journal: Journal) -> None:
    """Write the journal of a working folder, atomically."""
    files.write(work / JOURNAL, msgspec.json.encode(journal))


def load(work: Path, root: Path, dtype: str) -> Journal:
    """The journal of a working folder; files in `root` that it does not name are deleted.

    Where the journal or one of its files is missing, `root` is emptied and the journal is new.
    """
    journal = _read_journal(work)
    known = _known_files(journal)
    width = np.dtype(dtype).itemsize
    if journal is None or not _are_complete(root, known, width):
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        return Journal()
    for file in root.rglob("*"):
        if file.is_file() and file.relative_to(root).as_posix() not in known:
            file.unlink()
    return journal


def _read_journal(work: Path) -> Journal | None:
    try:
        return msgspec.json.decode((work / JOURNAL).read_bytes(), type=Journal)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _known_files(journal: Journal | None) -> dict[str, int]:
    """The files that a journal names, with the tokens in each."""
    known: dict[str, int] = {}
    if journal is None:
        return known
    for split, state in journal.splits.items():
        known |= {shard.file: shard.tokens for shard in state.shards}
        if state.open_tokens:
            known[shard_name(split, len(state.shards))] = state.open_tokens
    return known


def _are_complete(root: Path, known: dict[str, int], width: int) -> bool:
    try:
        return all((root / file).stat().st_size >= num * width for file, num in known.items())
    except FileNotFoundError:
        return False
