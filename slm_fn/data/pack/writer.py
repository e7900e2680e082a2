"""The packer's threads: one reads, one encodes (or workers do), one writes.

A journal records progress.

Invariant: where packing stops and resumes, and how documents are batched, changes no byte.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slm_fn.data.io import holdout
from slm_fn.data.io.documents import Document
from slm_fn.data.io.holdout import HoldoutRule
from slm_fn.data.pack import shards
from slm_fn.data.pack.encode import DiskEncoder, EncodedBatch, encode_batches
from slm_fn.data.pack.shards import NEW_PACK, SPLITS, Journal, ShardWriter

JOURNAL_TOKENS = 1 << 24
"""Tokens between two entries of the journal: what a kill costs at most, beside reading."""
MAX_PENDING = 2
"""Encoded batches that wait to be written."""


class PackProgress(NamedTuple):
    """Progress of packing, earlier calls included: chunks of documents, tokens, bytes of text."""

    num_chunks: int
    tokens: int
    num_bytes: int


class WriteSettings(NamedTuple):
    """What decides the bytes of shards: held-out rule, start token, shard size in tokens."""

    rule: HoldoutRule
    eos: int
    shard_size: int


def write(
    work: Path,
    chunks: Iterable[Document],
    encoder: DiskEncoder,
    settings: WriteSettings,
    workers: int,
    progress: Callable[[PackProgress], None],
) -> Journal:
    """Write all chunks into shards, resuming from the journal of the working folder.

    Args:
        workers: processes that encode; 0 encodes in this one.
        progress: called after every batch; when resuming, also before the first.
    """
    journal = shards.load(work, work / NEW_PACK, encoder.dtype)
    remaining = itertools.islice(chunks, journal.num_chunks, None)
    pack_writer = PackWriter(work, journal, settings, encoder.dtype)
    if journal.num_chunks:
        progress(pack_writer.progress())
    pending: deque[Future[PackProgress]] = deque()
    with (
        ThreadPoolExecutor(1, thread_name_prefix="pack") as thread,
        closing(encode_batches(remaining, encoder, workers)) as batches,
    ):
        try:
            for batch in batches:
                pending.append(thread.submit(pack_writer.append, batch))
                if len(pending) > MAX_PENDING:
                    progress(pending.popleft().result())
            for future in pending:
                progress(future.result())
            return thread.submit(pack_writer.finish).result()
        finally:
            thread.submit(pack_writer.abandon)


class PackWriter:
    """Writes both splits and their journal; used by one thread."""

    def __init__(self, work: Path, journal: Journal, settings: WriteSettings, dtype: str) -> None:
        self.work = work
        self.journal = journal
        self.settings = settings
        self.num_chunks = journal.num_chunks
        self.previous = journal.previous
        self.names_met = set(journal.names_met)
        self.is_appending = False
        root = work / NEW_PACK
        self.writers = {
            name: ShardWriter(root, name, dtype, settings.shard_size, journal.splits[name])
            for name in SPLITS
        }

    def append(self, batch: EncodedBatch) -> PackProgress:
        """Append a batch; the journal is updated every `JOURNAL_TOKENS`.

        Raises:
            OSError: a failed write, as on a full disk. Later calls then fail too, so that the
                journal keeps what was complete.
        """
        if self.is_appending:
            raise RuntimeError("a batch before this one could not be written")
        self.is_appending = True
        plan = holdout.plan_splits(self.settings.rule, self.previous, batch.documents)
        ids, lengths = with_starts(batch.ids, batch.offsets, plan.starts, self.settings.eos)
        num_bytes = np.array([_utf8_length(chunk.text) for chunk in batch.documents])
        for name, is_in_split in (("train", ~plan.is_val), ("val", plan.is_val)):
            if not is_in_split.any():
                continue
            split_ids = ids if is_in_split.all() else ids[np.repeat(is_in_split, lengths)]
            num_documents = int((plan.starts & is_in_split).sum())
            self.writers[name].append(split_ids, num_documents, int(num_bytes[is_in_split].sum()))
        self.num_chunks += len(batch.documents)
        self.previous = plan.previous
        names = self.settings.rule.names
        if names:
            self.names_met |= names.intersection(chunk.name for chunk in batch.documents)
        if self.progress().tokens - self.journal.tokens >= JOURNAL_TOKENS:
            self._save_journal()
        self.is_appending = False
        return self.progress()

    def progress(self) -> PackProgress:
        """Progress of both splits."""
        writers = self.writers.values()
        tokens = sum(writer.tokens for writer in writers)
        num_bytes = sum(writer.num_bytes for writer in writers)
        return PackProgress(self.num_chunks, tokens, num_bytes)

    def finish(self) -> Journal:
        """Finish both splits and record it in the journal."""
        for writer in self.writers.values():
            writer.close()
        return self._save_journal()

    def abandon(self) -> None:
        """Close the files without finishing their shards."""
        for writer in self.writers.values():
            writer.abandon()

    def _save_journal(self) -> Journal:
        states = {name: writer.state() for name, writer in self.writers.items()}
        names_met = tuple(sorted(self.names_met))
        self.journal = Journal(self.num_chunks, self.previous, names_met, states)
        shards.save(self.work, self.journal)
        return self.journal


def _utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def with_starts(
    ids: np.ndarray, offsets: np.ndarray, starts: np.ndarray, eos: int
) -> tuple[np.ndarray, np.ndarray]:
    """Flat ids with the start token before the texts that `starts` marks, and the new lengths.

    Example:
        >>> ids, lengths = with_starts(
        ...     np.array([7, 8, 9]), np.array([0, 2, 3]), np.array([True, False]), eos=0
        ... )
        >>> ids.tolist(), lengths.tolist()
        ([0, 7, 8, 9], [3, 1])
    """
    lengths = np.diff(offsets) + starts
    text_starts = np.cumsum(lengths) - lengths
    positions = text_starts[starts]
    out = np.empty(len(ids) + len(positions), dtype=ids.dtype)
    is_text = np.ones(len(out), dtype=bool)
    is_text[positions] = False
    out[positions] = eos
    out[is_text] = ids
    return out, lengths
