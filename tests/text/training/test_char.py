"""Character tokenizers: ASCII, the alphabet of a corpus, and unknown characters."""

import pytest

from slm_fn.text.training import char


def test_the_ascii_alphabet() -> None:
    made = char.train(source="ascii", special_tokens=())
    assert made.vocab_size == 99
    assert made.special_id("<PAD>") == 0
    assert made.special_id("<UNK>") == 1
    text = "".join(map(chr, range(32, 127))) + "\n\t"
    assert made.decode(made.encode(text)) == text
    assert made.encode("é") == [1]
    assert made.decode([1]) == "\ufffd"
    assert made.decode([0]) == ""


def test_an_alphabet_is_taken_from_text_and_chat_tokens_follow() -> None:
    made = char.train(["banana\n", "日本"])
    assert made.decode(made.encode("ban日\n本")) == "ban日\n本"
    assert made.encode("z") == [1]
    assert made.special_id("<|end|>") == made.vocab_size - 1
    assert made.encode("<PAD>")[0] == 1


def test_a_small_vocabulary_has_the_frequent_characters() -> None:
    made = char.train(["aaab bbbc"], vocab_size=10)
    assert made.vocab_size == 10
    assert made.decode(made.encode("abc")) == "ab\ufffd"


def test_bad_settings_are_rejected() -> None:
    with pytest.raises(ValueError, match="the corpus is empty"):
        char.train([])
    with pytest.raises(ValueError, match="too small"):
        char.train(["a"], vocab_size=8)
    with pytest.raises(ValueError, match="0xff is not UTF-8"):
        char.train(["a"]).encode_bytes(b"a\xff")
