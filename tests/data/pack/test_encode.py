"""data/pack/encode.py.

The order of documents, whoever encodes them, and ids that fit the vocabulary.
"""

import threading
import time
from itertools import count, pairwise

import numpy as np
import pytest

from slm_fn.data.io.documents import Document
from slm_fn.data.pack import encode
from slm_fn.data.pack.encode import DiskEncoder, encode_batches
from slm_fn.text.training import bpe


@pytest.mark.parametrize("workers", [0, 2])
def test_documents_keep_their_order(workers, monkeypatch):
    monkeypatch.setattr(encode, "BATCH_DOCUMENTS", 100)
    tokenizer = bpe.train(["text 1 2 3"], vocab_size=270)
    documents = [Document(f"d{i}", f"text {i}" * (i % 7)) for i in range(1050)]
    found = list(
        encode_batches(
            documents, DiskEncoder(tokenizer.encode_flat, tokenizer.vocab_size, "<u2"), workers
        )
    )
    assert [len(batch.documents) for batch in found] == [100] * 10 + [50]
    assert [document for batch in found for document in batch.documents] == documents
    for documents, ids, offsets in found:
        assert ids.dtype == "<u2"
        rows = [ids[a:b].tolist() for a, b in pairwise(offsets)]
        assert rows == [tokenizer.encode(document.text) for document in documents]


def test_batches_are_bounded_by_characters_too(monkeypatch):
    monkeypatch.setattr(encode, "BATCH_CHARACTERS", 10)
    found = encode.batch_documents([Document("d", "x" * n) for n in (4, 4, 4, 30, 1)])
    assert [[len(d.text) for d in batch] for batch in found] == [[4, 4, 4], [30], [1]]


def test_an_id_outside_the_vocabulary_is_an_error():
    with pytest.raises(ValueError, match="gave id 99, outside its vocabulary of 50"):
        list(
            encode_batches(
                [Document("d", "zzz")],
                DiskEncoder(lambda texts: (np.array([7, 99]), np.array([0, 2])), 50, "<u2"),
                0,
            )
        )


def test_reading_ahead_is_bounded_and_passes_an_error_on_at_its_place():
    read = []

    def items():
        for i in range(10):
            read.append(i)
            if i == 7:
                raise ValueError("no item 7")
            yield i

    ahead = encode.read_ahead(items(), depth=2)
    assert next(ahead) == 0
    time.sleep(0.05)
    assert len(read) <= 4, "it runs away"
    assert [next(ahead) for _ in range(6)] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match="no item 7"):
        next(ahead)


def test_closing_ends_the_thread():
    ahead = encode.read_ahead(count())
    assert next(ahead) == 0
    ahead.close()
    assert "read-ahead" not in [thread.name for thread in threading.enumerate()]
