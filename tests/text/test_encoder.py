"""The fast backend is used only where it is exact; otherwise a reason is given."""

import json
import sys

import pytest
import tokenizers

from slm_fn.text import encoder
from slm_fn.text.tokenizer import Tokenizer
from slm_fn.text.training import bpe, byte_fallback, char

from .conftest import CORPUS


def test_known_splits_are_encoded_by_gigatoken() -> None:
    for pattern in ("qwen2", "gpt2", "cl100k", "llama3"):
        chosen = bpe.train(CORPUS, 300, pattern=pattern).encoder_backend
        assert (chosen.name, chosen.is_slow) == ("gigatoken", False)


def test_others_fall_back_with_a_reason(tokenizer: Tokenizer) -> None:
    own = bpe.train(CORPUS, 300, pattern=r"\w+|\W").encoder_backend
    assert own.is_slow
    assert "gigatoken does not support this tokenizer" in own.reason
    assert "\n" not in own.reason
    assert "byte-fallback" in byte_fallback.train(CORPUS, 300).encoder_backend.reason
    assert char.train(CORPUS).encoder_backend.name == "table"


def test_an_encoder_with_other_ids_is_not_trusted() -> None:
    """Whether or not gigatoken supports this normalizer, the ids are those of the library."""
    hf = tokenizers.Tokenizer.from_str(bpe.train(CORPUS, 300).to_json())
    hf.normalizer = tokenizers.normalizers.Lowercase()
    hf.encode_special_tokens = True
    chosen = encoder.choose_backend(hf, "bpe")
    text = "TO BE Or not"
    assert chosen.encode([text.encode()]).ids.tolist() == hf.encode(text).ids


def test_no_texts_give_empty_arrays() -> None:
    for made in (bpe.train(CORPUS, 300), byte_fallback.train(CORPUS, 300), char.train(CORPUS)):
        assert made.encode_flat([]).ids.tolist() == []
        assert made.encode_flat([]).offsets.tolist() == [0]
        assert made.encode_flat(["", "a", ""]).offsets.tolist() == [0, 0, 1, 1]


def test_a_backend_that_fails_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without awkward gigatoken gives plain lists, which have no layout."""
    monkeypatch.setitem(sys.modules, "awkward", None)
    made = bpe.train(CORPUS, 300)
    assert made.encode_flat(["to be", ""]).ids.tolist() == made.encode("to be")


def test_a_vocabulary_of_words_does_not_use_the_table() -> None:
    """By its model and decoder, a word-level file is detected as a character tokenizer."""
    model = tokenizers.models.WordLevel({"[UNK]": 0, "to": 1, "be": 2, "b": 3}, unk_token="[UNK]")
    hf = tokenizers.Tokenizer(model)
    hf.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    hf.decoder = tokenizers.decoders.Fuse()
    made = Tokenizer.from_json(hf.to_str())
    assert made.encode_flat(["to be"]).ids.tolist() == made.encode("to be") == [1, 2]


def test_a_reloaded_encoder_gives_the_same_ids(tokenizer: Tokenizer) -> None:
    loads: list[int] = []
    one = tokenizer.encoder_backend.encode

    def load() -> object:
        loads.append(1)
        from gigatoken.gigatoken_rs import load_hf_json

        return load_hf_json(json.dumps(json.loads(tokenizer.to_json()) | {"added_tokens": []}))

    encode = encoder.ReloadingEncoder(load, max_bytes=100)
    texts = [[text.encode() for text in ("to be", "é" * n, "or not")] for n in range(30)]
    assert [encode(row).ids.tolist() for row in texts] == [one(row).ids.tolist() for row in texts]
    assert 5 < len(loads) < 20
