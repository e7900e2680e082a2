"""Documents to ids in their order, encoded in this process or in spawned ones, a bounded part at a time.

Invariant: the number of workers changes the speed alone.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from slm_fn.data.sources import Document

BATCH_CHARACTERS, BATCH_DOCUMENTS = 1 << 20, 512
"""What is encoded at a time: memory stays bounded, and a worker has enough to do."""

EncodeBatch = Callable[[Sequence[str]], list[list[int]]]


class Encode(NamedTuple):
    """Documents' texts to arrays of ids, start token first; what is sent to a worker."""

    encode_batch: EncodeBatch
    eos: int
    vocab_size: int

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        rows = [np.array([self.eos, *ids], dtype=np.uint32) for ids in self.encode_batch(texts)]
        largest = max(int(row.max()) for row in rows)
        if largest >= self.vocab_size:
            raise ValueError(f"the tokenizer gave id {largest}, outside its vocabulary of {self.vocab_size}")
        return rows


_encode: Encode
"""A worker process's own encoder: unpickled once, not with every batch."""


def _start_worker(encode: Encode) -> None:
    global _encode
    _encode = encode


def _work(texts: list[str]) -> list[np.ndarray]:
    return _encode(texts)


def encoded(documents: Iterable[Document], encode: Encode, workers: int) -> Iterator[tuple[Document, np.ndarray]]:
    """Every document with its ids, in order; at most two batches per worker are in memory."""
    if workers == 0:
        for batch in _batches(documents):
            yield from zip(batch, encode([document.text for document in batch]), strict=True)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(encode,))
    under_way: deque[tuple[list[Document], Future[Any]]] = deque()
    try:
        for batch in _batches(documents):
            under_way.append((batch, pool.submit(_work, [document.text for document in batch])))
            if len(under_way) >= 2 * workers:
                done, future = under_way.popleft()
                yield from zip(done, future.result(), strict=True)
        for done, future in under_way:
            yield from zip(done, future.result(), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
