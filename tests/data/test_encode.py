"""data/encode.py: the order of documents, whoever encodes them, and ids that fit the vocabulary."""

import pytest

from slm_fn.data.encode import Encode, encoded
from slm_fn.data.sources import Document
from slm_fn.text import bpe


@pytest.mark.parametrize("workers", [0, 2])
def test_documents_keep_their_order_and_begin_with_the_start_token(workers):
    tokenizer = bpe.train(["text 1 2 3"], vocab_size=270)
    documents = [Document(f"d{i}", f"text {i}" * (i % 7 + 1)) for i in range(1200)]
    found = list(encoded(documents, Encode(tokenizer.encode_batch, 0, tokenizer.vocab_size), workers))
    assert [document for document, _ in found] == documents
    assert all(ids.tolist() == [0, *tokenizer.encode(document.text)] for document, ids in found)


def test_an_id_outside_the_vocabulary_is_an_error():
    with pytest.raises(ValueError, match="outside its vocabulary of 50"):
        list(encoded([Document("d", "zzz")], Encode(lambda texts: [[7, 99]], 0, 50), 0))
