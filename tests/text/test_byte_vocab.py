"""Kinds are detected from the file; bytes have the representation of Hugging Face tokenizers."""

import json

import pytest

from slm_fn.text import byte_vocab
from slm_fn.text.training import bpe, byte_fallback, char, unigram


def test_kinds_are_distinguished() -> None:
    made = {
        "bpe": bpe.train(["ab"], 262),
        "byte-fallback": byte_fallback.train(["ab"], 264),
        "unigram": unigram.train(["ab ab"], 270),
        "char": char.train(["ab"]),
    }
    assert {
        name: byte_vocab.detect_kind(json.loads(one.to_json())) for name, one in made.items()
    } == {n: n for n in made}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"model": {"type": "WordPiece"}},
        {"model": {"type": "BPE"}, "decoder": {"type": "Metaspace"}},
    ],
)
def test_others_are_rejected(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="none of the kinds"):
        byte_vocab.detect_kind(fields)


def test_every_byte_has_a_token() -> None:
    for kind in ("bpe", "byte-fallback", "unigram"):
        tokens = byte_vocab.byte_tokens(kind)
        assert [byte_vocab.token_to_bytes(kind, token) for token in tokens] == [
            bytes([b]) for b in range(256)
        ]
    assert byte_vocab.byte_tokens("char") == ()
    assert byte_vocab.token_to_bytes("byte-fallback", "<0x4>") == b"<0x4>"
