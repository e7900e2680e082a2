"""Round trips over all of Unicode, through JSON, pickle and a spawned process; text never becomes a control token."""

import json
import multiprocessing
import pickle
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_fn.text import bpe
from slm_fn.text.spelling import BYTE_OF
from slm_fn.text.tokenizer import Tokenizer

TRAINED = bpe.train(["to be or not to be <|end|> é 日本 😀 \r\n\r\n  x"] * 5, 330)
"""Not a fixture: hypothesis draws many texts for one."""
ROADS = {
    "fresh": TRAINED,
    "json": Tokenizer.from_json(TRAINED.to_json()),
    "pickle": pickle.loads(pickle.dumps(TRAINED)),
}
spelled = st.sampled_from([*bpe.SPECIALS, "<|", "|>", "<|end|", " <|end|> ", "<|end|><|end|>"])
texts = st.lists(st.one_of(st.text(max_size=20), spelled), max_size=5).map("".join)


@pytest.mark.parametrize("road", ROADS)
@settings(max_examples=150, deadline=None)
@given(text=texts)
def test_every_text_comes_back_and_holds_no_control_token(road: str, text: str) -> None:
    tokenizer = ROADS[road]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.specials.values())
    assert ids == TRAINED.encode(text)


def test_every_code_point_comes_back() -> None:
    points = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    texts = [points[begin : begin + 64] for begin in range(0, len(points), 64)]
    assert [TRAINED.decode(ids) for ids in TRAINED.encode_batch(texts)] == texts


def test_a_spawned_worker_encodes_control_tokens_spelling_as_text() -> None:
    texts = ["to be", *bpe.SPECIALS, "a<|end|>b"]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        rows = pool.apply(TRAINED.encode_batch, (texts,))
    assert rows == TRAINED.encode_batch(texts)
    assert [TRAINED.decode(row) for row in rows] == texts
    assert not {i for row in rows for i in row} & set(TRAINED.specials.values())


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40))
def test_the_library_reads_the_same_ids_from_the_saved_file(text: str) -> None:
    theirs = tokenizers.Tokenizer.from_str(TRAINED.to_json())
    assert theirs.encode(text, add_special_tokens=False).ids == TRAINED.encode(text)


def test_save_and_load(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "deep" / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "deep" / "tokenizer.json")
    assert loaded == tokenizer
    assert hash(loaded) == hash(tokenizer)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert tokenizer != TRAINED


def test_the_fingerprint_sees_past_spacing_and_the_order_of_keys(tokenizer: Tokenizer) -> None:
    fields = json.loads(tokenizer.to_json())
    shuffled = json.dumps(dict(reversed(fields.items())))
    assert Tokenizer.from_json(shuffled).fingerprint == tokenizer.fingerprint


def test_a_file_that_truncates_or_pads_does_neither_here(tokenizer: Tokenizer) -> None:
    theirs = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    theirs.enable_truncation(2)
    theirs.enable_padding(length=50)
    assert Tokenizer.from_json(theirs.to_str()).encode("to be or not") == tokenizer.encode("to be or not")


def test_the_bytes_of_tokens_are_those_of_the_text(tokenizer: Tokenizer) -> None:
    assert sorted(BYTE_OF.values()) == list(range(256))
    text = "naïve 😀 to be"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()
    assert all(tokenizer.token_bytes(i) == b"" for i in tokenizer.specials.values())
    assert {tokenizer.token_bytes(i) for i in range(6, tokenizer.vocab_size)} >= {bytes([b]) for b in range(256)}


def test_decoding_leaves_control_tokens_out_and_marks_broken_bytes(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("to be")
    assert tokenizer.decode([tokenizer.special("<|user|>"), *ids, tokenizer.special("<|end|>")]) == "to be"
    half = next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"\xf0")
    assert tokenizer.decode([half, *ids]) == "\ufffdto be"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a tokenizer.json"),
        ("[]", "not a tokenizer.json"),
        ('{"version": "1.0"}', "not a tokenizer.json"),
        (tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a")).to_str(), "none of the kinds"),
    ],
)
def test_what_is_no_tokenizer_is_one_line_that_names_the_file(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer.load(tmp_path / "t.json")
    assert str(tmp_path / "t.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_other_bad_input_is_said_plainly(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="slm tokenizer train"):
        Tokenizer.load(tmp_path / "none.json")
    (tmp_path / "t.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="UTF-8"):
        Tokenizer.load(tmp_path / "t.json")
    with pytest.raises(ValueError, match=r"no control token <\|nope\|>.*<\|end\|>"):
        tokenizer.special("<|nope|>")
    for token in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"no token has id {token}"):
            tokenizer.decode([token])
    with pytest.raises(ValueError, match="surrogates"):
        tokenizer.encode("a\ud800")


def test_a_file_whose_merges_make_a_control_token_is_refused() -> None:
    """As sentencepiece's `<s>` with a score of its own; no flag of the library keeps text from it."""
    theirs = tokenizers.Tokenizer.from_str(bpe.train(["the the the"], 270).to_json())
    assert theirs.token_to_id("the") is not None
    theirs.add_special_tokens(["the"])
    with pytest.raises(ValueError, match="plain text would become the control token 'the'"):
        Tokenizer.from_json(theirs.to_str())


def test_a_vocabulary_that_cannot_encode_its_control_tokens_is_told_in_one_line() -> None:
    theirs = tokenizers.Tokenizer(tokenizers.models.Unigram([("a", -1.0)], unk_id=None, byte_fallback=True))
    steps = [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    theirs.decoder = tokenizers.decoders.Sequence(steps)
    theirs.add_special_tokens(["<s>"])
    with pytest.raises(ValueError, match=r"not a tokenizer\.json that can be used: .*unk_id"):
        Tokenizer.from_json(theirs.to_str())


def test_of_two_control_tokens_at_one_place_the_longer_is_meant() -> None:
    made = bpe.train(["to be"], 270, specials=("<a>", "<a>>"))
    assert made.encode("<a>><a>", allowed_special="all") == [made.special("<a>>"), made.special("<a>")]
