"""Documents to token ids, in order: a thread reads ahead, this process or spawned ones encode.

Invariant: the number of workers and the size of the batches change the speed alone.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from slm_fn.data.io.documents import Document
from slm_fn.data.io.workers import batched, map_in_order

T = TypeVar("T")

BATCH_CHARACTERS = 1 << 22
BATCH_DOCUMENTS = 1 << 14
"""Limits of a batch to encode: memory stays bounded, and all cores have enough to do."""
POLL_SECONDS = 0.1
JOIN_SECONDS = 1.0

FlatIds = tuple[np.ndarray, np.ndarray]
"""(ids, offsets): the ids of text i are `ids[offsets[i]:offsets[i + 1]]`."""
EncodeFlat = Callable[[Sequence[str]], FlatIds]


class EncodedBatch(NamedTuple):
    """Documents and their ids, one after another."""

    documents: list[Document]
    ids: np.ndarray
    offsets: np.ndarray


class DiskEncoder(NamedTuple):
    """Encodes texts to ids in the dtype of the disk; this is what is sent to a worker."""

    encode_flat: EncodeFlat
    vocab_size: int
    dtype: str

    def encode(self, texts: Sequence[str]) -> FlatIds:
        """The ids of texts.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        ids, offsets = self.encode_flat(texts)
        largest = int(ids.max()) if len(ids) else 0
        if largest >= self.vocab_size:
            raise ValueError(
                f"the tokenizer gave id {largest}, outside its vocabulary of {self.vocab_size}"
            )
        return ids.astype(self.dtype), offsets

    def encode_documents(self, documents: Sequence[Document]) -> FlatIds:
        """The ids of documents."""
        return self.encode([document.text for document in documents])


def encode_batches(
    documents: Iterable[Document], encoder: DiskEncoder, workers: int
) -> Generator[EncodedBatch, None, None]:
    """Batches of documents with their ids, in order.

    At most two batches per worker, and three more, are in memory.
    """
    batches = read_ahead(batch_documents(documents))
    try:
        for batch, flat_ids in map_in_order(batches, encoder.encode_documents, workers):
            yield EncodedBatch(batch, *flat_ids)
    finally:
        batches.close()


def batch_documents(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Batches of at most `BATCH_CHARACTERS` or `BATCH_DOCUMENTS`."""
    return batched(
        documents, lambda document: len(document.text), BATCH_CHARACTERS, BATCH_DOCUMENTS
    )


_Fetched = tuple[bool, Any]
"""(True, item), and at the end (False, None) or (False, error)."""


def _fetch(items: Iterable[Any], fetched: queue.Queue[_Fetched], stopped: threading.Event) -> None:
    """Put every item into the queue until the reader has stopped."""

    def put(entry: _Fetched) -> None:
        while not stopped.is_set():
            try:
                fetched.put(entry, timeout=POLL_SECONDS)
                return
            except queue.Full:
                continue

    try:
        for item in items:
            put((True, item))
            if stopped.is_set():
                return
        put((False, None))
    except BaseException as error:
        put((False, error))


def read_ahead(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """The items; a thread fetches the next `depth` of them while one is used.

    An error in `items` is raised where its item would have come. Closing the generator ends the
    thread at its next item.

    Example:
        >>> list(read_ahead(range(3)))
        [0, 1, 2]
    """
    fetched: queue.Queue[_Fetched] = queue.Queue(depth)
    stopped = threading.Event()
    thread = threading.Thread(
        target=_fetch, args=(items, fetched, stopped), name="read-ahead", daemon=True
    )
    thread.start()
    try:
        while True:
            has_item, entry = fetched.get()
            if not has_item:
                break
            yield entry
        if entry is not None:
            raise entry
    finally:
        stopped.set()
        # A source that hangs must not delay an error or Ctrl+C.
        thread.join(JOIN_SECONDS)
