"""data/encode.py: the order of documents, whoever encodes them, and ids that fit the vocabulary."""

import pytest

from slm_fn.data.encode import Encode, encoded
from slm_fn.data.sources import Document


def bytes_of(texts):
    """A tokenizer for tests, picklable: the bytes of each text, moved past one control token."""
    return [[b + 1 for b in text.encode()] for text in texts]


@pytest.mark.parametrize("workers", [0, 2])
def test_documents_keep_their_order_and_begin_with_the_start_token(workers):
    documents = [Document(f"d{i}", f"text {i}" * (i % 7 + 1)) for i in range(1200)]
    found = list(encoded(documents, Encode(bytes_of, 0, 257), workers))
    assert [document for document, _ in found] == documents
    assert all(ids.tolist() == [0, *bytes_of([document.text])[0]] for document, ids in found)


def test_an_id_outside_the_vocabulary_is_an_error():
    with pytest.raises(ValueError, match="outside its vocabulary of 50"):
        list(encoded([Document("d", "zzz")], Encode(bytes_of, 0, 50), 0))
