"""Kinds are told by the file; bytes are spelt as the file's readers spell them."""

import json

import pytest

from slm_fn.text import bpe, char, fallback, spelling, unigram


def test_kinds_are_told_apart() -> None:
    made = {
        "bpe": bpe.train(["ab"], 262),
        "byte-fallback": fallback.train(["ab"], 264),
        "unigram": unigram.train(["ab ab"], 270),
        "char": char.train(["ab"]),
    }
    assert {name: spelling.kind_of(json.loads(one.to_json())) for name, one in made.items()} == {n: n for n in made}


@pytest.mark.parametrize(
    "fields", [{}, {"model": {"type": "WordPiece"}}, {"model": {"type": "BPE"}, "decoder": {"type": "Metaspace"}}]
)
def test_others_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="none of the kinds"):
        spelling.kind_of(fields)


def test_every_byte_has_a_piece_that_spells_it() -> None:
    for kind in ("bpe", "byte-fallback", "unigram"):
        pieces = spelling.byte_pieces(kind)
        assert [spelling.spell(kind, piece) for piece in pieces] == [bytes([b]) for b in range(256)]
    assert spelling.byte_pieces("char") == ()
    assert spelling.spell("byte-fallback", "<0x4>") == b"<0x4>"
