"""A pack in the making: one thread reads, one encodes (or workers do), one writes; a journal says how far it is.

Invariant: where it is stopped and goes on, and how the documents are batched, changes no byte.
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

from slm_fn.data import holdout, shards
from slm_fn.data.encode import Batch, Encode, encoded
from slm_fn.data.holdout import HeldOut
from slm_fn.data.shards import SPLITS, Journal, Writer
from slm_fn.data.sources import Document

JOURNAL_TOKENS = 1 << 24
"""Written between two entries of the journal: what a kill costs at most, beside reading."""


class Progress(NamedTuple):
    """How far packing is, what an earlier call did included: pieces of documents, tokens, bytes of text."""

    pieces: int
    tokens: int
    num_bytes: int


def write(
    work: Path,
    pieces: Iterable[Document],
    encode: Encode,
    rule: HeldOut,
    eos: int,
    shard_size: int,
    workers: int,
    progress: Callable[[Progress], None],
) -> Journal:
    """Everything into shards: read by one thread, encoded by this one or by workers, written by a third."""
    journal = shards.load(work, work / "new", encode.dtype)
    rest = itertools.islice(pieces, journal.pieces, None)
    shelf = _Shelf(work, journal, rule, eos, encode.dtype, shard_size)
    if journal.pieces:
        progress(shelf.progress())
    under_way: deque[Future[Progress]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="pack") as writer, closing(encoded(rest, encode, workers)) as found:
        try:
            for batch in found:
                under_way.append(writer.submit(shelf.put, batch))
                if len(under_way) > 2:
                    progress(under_way.popleft().result())
            for future in under_way:
                progress(future.result())
            return writer.submit(shelf.finish).result()
        finally:
            writer.submit(shelf.abandon)


class _Shelf:
    """Both splits being written, and the journal of them; used by one thread."""

    def __init__(self, work: Path, journal: Journal, rule: HeldOut, eos: int, dtype: str, shard_size: int) -> None:
        self.work, self.journal, self.rule, self.eos = work, journal, rule, eos
        self.pieces, self.last, self.found = journal.pieces, journal.last, set(journal.found)
        self.halfway = False
        self.writers = {name: Writer(work / "new", name, dtype, shard_size, journal.splits[name]) for name in SPLITS}

    def put(self, batch: Batch) -> Progress:
        """Add a batch; every so often note in the journal how far it is.

        Raises:
            OSError: the disk is full, say. Then nothing more is added: the journal keeps what was whole.
        """
        if self.halfway:
            raise RuntimeError("a batch before this one could not be written")
        self.halfway = True
        plan = holdout.plan(self.rule, self.last, batch.documents)
        ids, lengths = with_starts(batch.ids, batch.offsets, plan.starts, self.eos)
        sizes = np.array([len(d.text) if d.text.isascii() else len(d.text.encode()) for d in batch.documents])
        for name, chosen in (("train", ~plan.is_val), ("val", plan.is_val)):
            if chosen.any():
                part = ids if chosen.all() else ids[np.repeat(chosen, lengths)]
                self.writers[name].append(part, int((plan.starts & chosen).sum()), int(sizes[chosen].sum()))
        self.pieces, self.last = self.pieces + len(batch.documents), plan.last
        if self.rule.names:
            self.found |= self.rule.names.intersection(document.name for document in batch.documents)
        if self.progress().tokens - self.journal.tokens >= JOURNAL_TOKENS:
            self._note()
        self.halfway = False
        return self.progress()

    def progress(self) -> Progress:
        """How far both splits are."""
        writers = self.writers.values()
        return Progress(self.pieces, sum(w.tokens for w in writers), sum(w.num_bytes for w in writers))

    def finish(self) -> Journal:
        """Finish both splits and say so in the journal."""
        for writer in self.writers.values():
            writer.close()
        return self._note()

    def abandon(self) -> None:
        """Let go of the files."""
        for writer in self.writers.values():
            writer.abandon()

    def _note(self) -> Journal:
        states = {name: writer.state() for name, writer in self.writers.items()}
        self.journal = Journal(self.pieces, self.last, tuple(sorted(self.found)), states)
        shards.save(self.work, self.journal)
        return self.journal


def with_starts(ids: np.ndarray, offsets: np.ndarray, starts: np.ndarray, eos: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat ids with the start token put in front of the texts that `starts` marks, and the texts' new lengths.

    Example:
        >>> with_starts(np.array([7, 8, 9]), np.array([0, 2, 3]), np.array([True, False]), 0)[0].tolist()
        [0, 7, 8, 9]
    """
    lengths = np.diff(offsets) + starts
    places = (np.cumsum(lengths) - lengths)[starts]
    out = np.empty(len(ids) + len(places), dtype=ids.dtype)
    is_text = np.ones(len(out), dtype=bool)
    is_text[places] = False
    out[places] = eos
    out[is_text] = ids
    return out, lengths
