"""Round trips over all of Unicode, through JSON, pickle and a spawned process."""

import json
import multiprocessing
import pickle
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_fn.text.byte_vocab import UNICODE_TO_BYTE
from slm_fn.text.tokenizer import Tokenizer
from slm_fn.text.training import bpe, vocabulary

TRAINED = bpe.train(["to be or not to be <|end|> é 日本 😀 \r\n\r\n  x"] * 5, 330)
"""Not a fixture, because hypothesis draws many texts for it."""
COPIES = {
    "fresh": TRAINED,
    "json": Tokenizer.from_json(TRAINED.to_json()),
    "pickle": pickle.loads(pickle.dumps(TRAINED)),
}
spelled = st.sampled_from(
    [*vocabulary.SPECIAL_TOKENS, "<|", "|>", "<|end|", " <|end|> ", "<|end|><|end|>"]
)
texts = st.lists(st.one_of(st.text(max_size=20), spelled), max_size=5).map("".join)


@pytest.mark.parametrize("origin", COPIES)
@settings(max_examples=150, deadline=None)
@given(text=texts)
def test_every_text_is_decoded_and_has_no_special_token(origin: str, text: str) -> None:
    tokenizer = COPIES[origin]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.special_tokens.values())
    assert ids == TRAINED.encode(text)


def test_every_code_point_is_decoded() -> None:
    points = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    texts = [points[begin : begin + 64] for begin in range(0, len(points), 64)]
    assert [TRAINED.decode(ids) for ids in TRAINED.encode_batch(texts)] == texts


def test_a_spawned_worker_encodes_special_tokens_spelling_as_text() -> None:
    texts = ["to be", *vocabulary.SPECIAL_TOKENS, "a<|end|>b"]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        rows = pool.apply(TRAINED.encode_batch, (texts,))
    assert rows == TRAINED.encode_batch(texts)
    assert [TRAINED.decode(row) for row in rows] == texts
    assert not {i for row in rows for i in row} & set(TRAINED.special_tokens.values())


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40))
def test_the_library_reads_the_same_ids_from_the_saved_file(text: str) -> None:
    hf = tokenizers.Tokenizer.from_str(TRAINED.to_json())
    assert hf.encode(text, add_special_tokens=False).ids == TRAINED.encode(text)


def test_save_and_load(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "deep" / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "deep" / "tokenizer.json")
    assert loaded == tokenizer
    assert hash(loaded) == hash(tokenizer)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert tokenizer != TRAINED


def test_the_fingerprint_ignores_spacing_and_the_order_of_keys(tokenizer: Tokenizer) -> None:
    fields = json.loads(tokenizer.to_json())
    shuffled = json.dumps(dict(reversed(fields.items())))
    assert Tokenizer.from_json(shuffled).fingerprint == tokenizer.fingerprint


def test_a_file_that_truncates_or_pads_does_neither_here(tokenizer: Tokenizer) -> None:
    hf = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    hf.enable_truncation(2)
    hf.enable_padding(length=50)
    assert Tokenizer.from_json(hf.to_str()).encode("to be or not") == tokenizer.encode(
        "to be or not"
    )


def test_the_bytes_of_tokens_are_those_of_the_text(tokenizer: Tokenizer) -> None:
    assert sorted(UNICODE_TO_BYTE.values()) == list(range(256))
    text = "naïve 😀 to be"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()
    assert all(tokenizer.token_bytes(i) == b"" for i in tokenizer.special_tokens.values())
    assert {tokenizer.token_bytes(i) for i in range(6, tokenizer.vocab_size)} >= {
        bytes([b]) for b in range(256)
    }


def test_decoding_leaves_special_tokens_out_and_marks_broken_bytes(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("to be")
    assert (
        tokenizer.decode([tokenizer.special_id("<|user|>"), *ids, tokenizer.special_id("<|end|>")])
        == "to be"
    )
    half = next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"\xf0")
    assert tokenizer.decode([half, *ids]) == "\ufffdto be"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a tokenizer.json"),
        ("[]", "not a tokenizer.json"),
        ('{"version": "1.0"}', "not a tokenizer.json"),
        (
            tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a")).to_str(),
            "none of the kinds",
        ),
    ],
)
def test_an_invalid_file_is_one_line_with_its_path(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer.load(tmp_path / "t.json")
    assert str(tmp_path / "t.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_other_bad_input_is_rejected(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="slm tokenizer train"):
        Tokenizer.load(tmp_path / "none.json")
    (tmp_path / "t.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="UTF-8"):
        Tokenizer.load(tmp_path / "t.json")
    with pytest.raises(ValueError, match=r"no special token <\|nope\|>.*<\|end\|>"):
        tokenizer.special_id("<|nope|>")
    for token in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"no token has id {token}"):
            tokenizer.decode([token])
    with pytest.raises(ValueError, match="surrogates"):
        tokenizer.encode("a\ud800")


def test_a_file_whose_merges_make_a_special_token_is_refused() -> None:
    """Like sentencepiece's `<s>` with its own score; no flag of the library prevents it."""
    hf = tokenizers.Tokenizer.from_str(bpe.train(["the the the"], 270).to_json())
    assert hf.token_to_id("the") is not None
    hf.add_special_tokens(["the"])
    with pytest.raises(ValueError, match="plain text would become the special token 'the'"):
        Tokenizer.from_json(hf.to_str())


def test_a_vocabulary_that_cannot_encode_its_special_tokens_is_rejected_in_one_line() -> None:
    hf = tokenizers.Tokenizer(
        tokenizers.models.Unigram([("a", -1.0)], unk_id=None, byte_fallback=True)
    )
    steps = [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    hf.decoder = tokenizers.decoders.Sequence(steps)
    hf.add_special_tokens(["<s>"])
    with pytest.raises(ValueError, match=r"not a tokenizer\.json that can be used: .*unk_id"):
        Tokenizer.from_json(hf.to_str())


def test_of_two_special_tokens_at_one_position_the_longer_is_used() -> None:
    made = bpe.train(["to be"], 270, special_tokens=("<a>", "<a>>"))
    assert made.encode("<a>><a>", allowed_special="all") == [
        made.special_id("<a>>"),
        made.special_id("<a>"),
    ]
