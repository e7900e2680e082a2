"""The fast encoder is taken where it is exact; where it is not, the reason is said and the ids are the same."""

import json
import sys

import pytest
import tokenizers

from slm_fn.text import bpe, char, engine, fallback
from slm_fn.text.tokenizer import Tokenizer

from .conftest import CORPUS


def test_known_splits_are_encoded_by_gigatoken() -> None:
    for pattern in ("qwen2", "gpt2", "cl100k", "llama3"):
        chosen = bpe.train(CORPUS, 300, pattern=pattern).engine
        assert (chosen.name, chosen.slow) == ("gigatoken", False)


def test_others_fall_back_and_say_why(tokenizer: Tokenizer) -> None:
    own = bpe.train(CORPUS, 300, pattern=r"\w+|\W").engine
    assert own.slow
    assert "gigatoken does not take this tokenizer" in own.reason
    assert "\n" not in own.reason
    assert "byte-fallback" in fallback.train(CORPUS, 300).engine.reason
    assert char.train(CORPUS).engine.name == "table"


def test_an_encoder_with_other_ids_is_not_trusted() -> None:
    """A normaliser that gigatoken may or may not know: whatever it does, the ids are the library's."""
    theirs = tokenizers.Tokenizer.from_str(bpe.train(CORPUS, 300).to_json())
    theirs.normalizer = tokenizers.normalizers.Lowercase()
    theirs.encode_special_tokens = True
    chosen = engine.choose(theirs, "bpe")
    text = "TO BE Or not"
    assert chosen.encode([text.encode()]).ids.tolist() == theirs.encode(text).ids


def test_nothing_is_an_empty_row() -> None:
    for made in (bpe.train(CORPUS, 300), fallback.train(CORPUS, 300), char.train(CORPUS)):
        assert made.encode_flat([]).ids.tolist() == []
        assert made.encode_flat([]).offsets.tolist() == [0]
        assert made.encode_flat(["", "a", ""]).offsets.tolist() == [0, 0, 1, 1]


def test_an_encoder_that_fails_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without awkward gigatoken gives plain lists, which have no layout."""
    monkeypatch.setitem(sys.modules, "awkward", None)
    made = bpe.train(CORPUS, 300)
    assert made.encode_flat(["to be", ""]).ids.tolist() == made.encode("to be")


def test_words_in_place_of_characters_are_not_looked_up_in_the_table() -> None:
    """A word-level file from elsewhere is taken for characters by its model and decoder."""
    model = tokenizers.models.WordLevel({"[UNK]": 0, "to": 1, "be": 2, "b": 3}, unk_token="[UNK]")
    theirs = tokenizers.Tokenizer(model)
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    theirs.decoder = tokenizers.decoders.Fuse()
    made = Tokenizer.from_json(theirs.to_str())
    assert made.encode_flat(["to be"]).ids.tolist() == made.encode("to be") == [1, 2]


def test_an_encoder_that_is_renewed_goes_on_alike(tokenizer: Tokenizer) -> None:
    loads: list[int] = []
    one = tokenizer.engine.encode

    def load() -> object:
        loads.append(1)
        from gigatoken.gigatoken_rs import load_hf_json

        return load_hf_json(json.dumps(json.loads(tokenizer.to_json()) | {"added_tokens": []}))

    encode = engine._renewed(load, most=100)
    texts = [[text.encode() for text in ("to be", "é" * n, "or not")] for n in range(30)]
    assert [encode(row).ids.tolist() for row in texts] == [one(row).ids.tolist() for row in texts]
    assert 5 < len(loads) < 20
