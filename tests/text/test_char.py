"""Character tokenizers: the ASCII policy's ids, an alphabet learnt, unknown characters shown as such."""

import pytest

from slm_fn.text import char


def test_the_ascii_policy() -> None:
    made = char.train(policy="ascii", specials=())
    assert made.vocab_size == 99
    assert made.special("<PAD>") == 0
    assert made.special("<UNK>") == 1
    text = "".join(map(chr, range(32, 127))) + "\n\t"
    assert made.decode(made.encode(text)) == text
    assert made.encode("é") == [1]
    assert made.decode([1]) == "\ufffd"
    assert made.decode([0]) == ""


def test_an_alphabet_is_learnt_and_chat_tokens_follow() -> None:
    made = char.train(["banana\n", "日本"])
    assert made.decode(made.encode("ban日\n本")) == "ban日\n本"
    assert made.encode("z") == [1]
    assert made.special("<|end|>") == made.vocab_size - 1
    assert made.encode("<PAD>")[0] == 1


def test_room_for_few_takes_the_frequent() -> None:
    made = char.train(["aaab bbbc"], vocab_size=10)
    assert made.vocab_size == 10
    assert made.decode(made.encode("abc")) == "ab\ufffd"


def test_bad_settings_are_said_plainly() -> None:
    with pytest.raises(ValueError, match="the corpus is empty"):
        char.train([])
    with pytest.raises(ValueError, match="too small"):
        char.train(["a"], vocab_size=8)
    with pytest.raises(ValueError, match="0xff is no UTF-8"):
        char.train(["a"]).encode_bytes(b"a\xff")
