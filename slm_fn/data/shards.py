"""Shards as they are written: tokens appended and hashed split by split, and a journal to go on from after a kill.

Invariant: what the journal names is on the disk; everything beyond it is cut off before writing goes on.
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
from slm_fn.data.holdout import Last

SPLITS = ("train", "val")
JOURNAL = "journal.json"


class Shard(msgspec.Struct, frozen=True):
    """One file of tokens."""

    file: str
    tokens: int
    sha256: str


class Written(msgspec.Struct, frozen=True):
    """How far a split has come: its full shards, the tokens in the one being filled, and what it was made of."""

    shards: tuple[Shard, ...] = ()
    open_tokens: int = 0
    documents: int = 0
    num_bytes: int = 0

    @property
    def tokens(self) -> int:
        """All it holds."""
        return sum(shard.tokens for shard in self.shards) + self.open_tokens


class Journal(msgspec.Struct, frozen=True):
    """A moment of a pack in the making: pieces read, the last of them, held-out names met, and both splits."""

    pieces: int = 0
    last: Last = Last()
    found: tuple[str, ...] = ()
    splits: dict[str, Written] = msgspec.field(default_factory=lambda: {name: Written() for name in SPLITS})

    @property
    def tokens(self) -> int:
        """Of both splits."""
        return sum(split.tokens for split in self.splits.values())


class Writer:
    """Appends tokens to the shards of one split, hashing as it goes; goes on where `state` says."""

    def __init__(self, root: Path, split: str, dtype: str, shard_size: int, state: Written) -> None:
        self.root, self.split, self.dtype, self.shard_size = root, split, np.dtype(dtype), shard_size
        self.shards, self.documents, self.num_bytes = list(state.shards), state.documents, state.num_bytes
        self.file: BinaryIO | None = None
        self.open_tokens, self.hash = 0, hashlib.sha256()
        if state.open_tokens:
            self._reopen(state.open_tokens)

    @property
    def tokens(self) -> int:
        """All it has taken."""
        return sum(shard.tokens for shard in self.shards) + self.open_tokens

    @property
    def name(self) -> str:
        return f"{self.split}/shard_{len(self.shards):05d}.bin"

    def append(self, ids: np.ndarray, documents: int, num_bytes: int) -> None:
        """Add tokens, of the type they have on the disk; documents begun among them; bytes of their text."""
        self.documents += documents
        self.num_bytes += num_bytes
        while len(ids):
            if self.file is None:
                (self.root / self.split).mkdir(exist_ok=True)
                self.file = (self.root / self.name).open("wb")
            room = self.shard_size - self.open_tokens
            part, ids = ids[:room], ids[room:]
            self.file.write(part.data)
            self.hash.update(part.data)
            self.open_tokens += len(part)
            if self.open_tokens == self.shard_size:
                self.close()

    def state(self) -> Written:
        """How far it is, everything up to there flushed to the disk."""
        if self.file is not None:
            _flush(self.file)
        return Written(tuple(self.shards), self.open_tokens, self.documents, self.num_bytes)

    def close(self) -> None:
        """Finish the shard being filled, if there is one."""
        if self.file is not None:
            _flush(self.file)
            self.file.close()
            self.shards.append(Shard(self.name, self.open_tokens, self.hash.hexdigest()))
            self.file, self.open_tokens, self.hash = None, 0, hashlib.sha256()

    def abandon(self) -> None:
        """Let go of the file without finishing its shard."""
        if self.file is not None:
            self.file.close()

    def _reopen(self, tokens: int) -> None:
        """Cut the open shard off behind its first `tokens`, and hash those."""
        self.file = (self.root / self.name).open("rb+")
        left = tokens * self.dtype.itemsize
        self.file.truncate(left)
        while left:
            part = self.file.read(min(left, 1 << 20))
            self.hash.update(part)
            left -= len(part)
        self.open_tokens = tokens


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def save(work: Path, journal: Journal) -> None:
    """Write the journal of a working folder, atomically."""
    files.write(work / JOURNAL, msgspec.json.encode(journal))


def load(work: Path, root: Path, dtype: str) -> Journal:
    """The journal of a working folder, `root` cleared of what it does not know; a new one where its files are gone."""
    known: dict[str, int] = {}
    try:
        journal = msgspec.json.decode((work / JOURNAL).read_bytes(), type=Journal)
        for split, written in journal.splits.items():
            known |= {shard.file: shard.tokens for shard in written.shards}
            if written.open_tokens:
                known[f"{split}/shard_{len(written.shards):05d}.bin"] = written.open_tokens
        width = np.dtype(dtype).itemsize
        whole = all((root / file).stat().st_size >= tokens * width for file, tokens in known.items())
    except (FileNotFoundError, msgspec.MsgspecError):
        whole = False
    if not whole:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        return Journal()
    for file in root.rglob("*"):
        if file.is_file() and file.relative_to(root).as_posix() not in known:
            file.unlink()
    return journal
