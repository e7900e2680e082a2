"""Documents to ids in their order, read ahead by a thread, encoded in this process or in spawned ones by the batch.

Invariant: the number of workers and the size of the batches change the speed alone.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from slm_fn.data.sources import Document
from slm_fn.data.workers import batched, in_order

T = TypeVar("T")
BATCH_CHARACTERS, BATCH_DOCUMENTS = 1 << 22, 1 << 14
"""What is encoded at a time: memory stays bounded, and all cores have enough to do."""

Flat = tuple[np.ndarray, np.ndarray]
"""(ids, offsets): text i is `ids[offsets[i]:offsets[i + 1]]`."""
EncodeFlat = Callable[[Sequence[str]], Flat]


class Batch(NamedTuple):
    """Documents and their ids, end to end."""

    documents: list[Document]
    ids: np.ndarray
    offsets: np.ndarray


class Encode(NamedTuple):
    """Texts to flat ids as they stand on the disk; what is sent to a worker."""

    encode_flat: EncodeFlat
    vocab_size: int
    dtype: str

    def __call__(self, texts: Sequence[str]) -> Flat:
        ids, offsets = self.encode_flat(texts)
        largest = int(ids.max()) if len(ids) else 0
        if largest >= self.vocab_size:
            raise ValueError(f"the tokenizer gave id {largest}, outside its vocabulary of {self.vocab_size}")
        return ids.astype(self.dtype), offsets

    def batch(self, documents: Sequence[Document]) -> Flat:
        """The same for documents."""
        return self([document.text for document in documents])


def encoded(documents: Iterable[Document], encode: Encode, workers: int) -> Generator[Batch, None, None]:
    """Batches of documents with their ids, in order; at most two batches per worker, and three more, are in memory."""
    with_thread = read_ahead(batches(documents))
    try:
        for batch, flat in in_order(with_thread, encode.batch, workers):
            yield Batch(batch, *flat)
    finally:
        with_thread.close()


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents by the batch: up to so many characters or documents."""
    return batched(documents, lambda document: len(document.text), BATCH_CHARACTERS, BATCH_DOCUMENTS)


def read_ahead(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """The items, the next `depth` of them fetched by a thread while one is used.

    An error in `items` arrives at its place. Closing the generator ends the thread at its next item.

    Example:
        >>> list(read_ahead(range(3)))
        [0, 1, 2]
    """
    fetched: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: tuple[bool, Any]) -> None:
        while not stopped.is_set():
            try:
                fetched.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def fetch() -> None:
        try:
            for item in items:
                put((True, item))
                if stopped.is_set():
                    return
            put((False, None))
        except BaseException as error:  # raised again where the item would have come
            put((False, error))

    thread = threading.Thread(target=fetch, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, item = fetched.get()
            if more:
                yield item
            elif item is not None:
                raise item
            else:
                return
    finally:
        stopped.set()
        thread.join(1.0)  # a source that hangs does not hold up an error or Ctrl+C
