"""Byte-fallback: frequent characters are tokens, the others bytes; `<0x41>` in text stays text."""

import pytest

from slm_fn.text.training import byte_fallback
from slm_fn.text.training.byte_fallback import ByteFallbackOptions

CORPUS = ["the cat and the hat, the bat <0x41> <0x41> <0x41> é" * 5, "x\u2581y"]


def test_rare_characters_are_bytes_and_frequent_ones_tokens() -> None:
    made = byte_fallback.train(CORPUS, 300, options=ByteFallbackOptions(coverage=0.95))
    assert made.token_bytes(made.encode("t")[0]) == b"t"
    assert [made.token_bytes(i) for i in made.encode("\u2581")] == [b"\xe2", b"\x96", b"\x81"]
    assert len(made.encode(" the")) == 1


def test_the_name_of_a_byte_token_is_never_that_token() -> None:
    made = byte_fallback.train(CORPUS * 20, 400)
    assert made.encode_bytes(b"\xff") == [6 + 255]
    assert 6 + 0x41 not in made.encode("<0x41>")
    assert made.decode(made.encode("<0x41>A")) == "<0x41>A"


def test_methods_agree() -> None:
    made = [
        byte_fallback.train(CORPUS, 320, options=ByteFallbackOptions(method=method)).to_json()
        for method in ("fast", "heap", "basic")
    ]
    assert made[0] == made[1] == made[2]


def test_bad_settings_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"too small.*263"):
        byte_fallback.train(CORPUS, 262)
    with pytest.raises(ValueError, match="the corpus is empty"):
        byte_fallback.train([""], 300)
    small = byte_fallback.train(CORPUS, 264)
    assert small.vocab_size == 264
    assert small.decode(small.encode(CORPUS[0])) == CORPUS[0]
