"""pipeline/inspect_tokenizer.py: figures that can be counted by hand."""

import json

import pytest

from slm_fn.data.sources import Document
from slm_fn.pipeline import inspect_tokenizer, plot
from slm_fn.pipeline.inspect_tokenizer import describe, measure, spelt, summary, texts
from slm_fn.text import bpe, char
from slm_fn.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def small():
    return bpe.build([(b"a", b"b"), (b"ab", b"ab"), (b" ", b"abab")], bpe.patterns.PATTERNS["qwen2"])


def test_what_a_tokenizer_is_made_of(small):
    found = describe(small)
    assert found["kind"] == "bpe"
    assert found["vocab_size"] == 6 + 256 + 3
    assert found["merges"] == 3
    assert found["pattern"] == "qwen2"
    assert found["engine"] in ("gigatoken", "tokenizers")
    assert found["token_lengths"] == {1: 256, 2: 1, 4: 1, 5: 1}
    assert list(found["longest_tokens"].items())[:3] == [(264, "' abab'"), (263, "'abab'"), (262, "'ab'")]
    assert json.loads(json.dumps(found))["specials"]["<|end|>"] == 5


def test_what_it_makes_of_texts(small):
    documents = [Document("one", "abab abab"), Document("two", "ab"), Document("two", "ab", 1), Document("end", "é")]
    found = measure(small, documents)
    assert found.num_bytes.tolist() == [9, 4, 2]
    assert found.num_tokens.tolist() == [2, 2, 2]  # the parts of one text are one
    told = summary(small, found)
    assert (told["documents"], told["bytes"], told["tokens"], told["bytes_per_token"]) == (3, 15, 6, 2.5)
    assert told["round_trip"]
    assert told["most_frequent"] == {"'ab'": 2, "'abab'": 1, "' abab'": 1, "b'\\xa9'": 1, "b'\\xc3'": 1}
    assert told["unused"] == 259 - 5
    assert [panel.title for panel in inspect_tokenizer.panels(describe(small), found)] == [
        "Length of 259 tokens", "5 tokens used, 260 never", "Compression by document",
    ]  # fmt: skip


def test_what_does_not_come_back_is_named():
    tokenizer = char.train(["abc"])
    told = summary(tokenizer, measure(tokenizer, [Document("good", "abc"), Document("bad", "abx")]))
    assert not told["round_trip"]
    assert told["altered"] == ["bad"]
    assert describe(tokenizer)["pattern"] is None


def test_tokens_are_spelt_for_the_eye(small):
    spaces = bpe.build([(b" ", b" "), (b"  ", b"  "), (b"    ", b"    ")], r"[\s\S]+")
    assert [spelt(small, i) for i in (0, 6 + 10, 6 + 0xC3, 264)] == ["<|endoftext|>", "'\\n'", "b'\\xc3'", "' abab'"]
    assert spelt(spaces, spaces.vocab_size - 1) == "' ' * 8"


def test_any_file_is_a_text(tmp_path, road):
    (tmp_path / "code.py").write_text("x = 1\n")
    assert list(texts(tmp_path / "code.py")) == [Document("code.py", "x = 1\n")]
    assert len(list(texts(road.text))) == 8
    (tmp_path / "odd.bin").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"odd.bin is no UTF-8 text"):
        texts(tmp_path / "odd.bin")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(texts(tmp_path / "nowhere"))
    told = []
    (tmp_path / "a.jsonl").write_text('{"text": "ab"}\n{"te\n')
    assert [document.text for document in texts(tmp_path / "a.jsonl", told.append)] == ["ab"]
    assert len(told) == 1


def test_without_texts_there_is_one_picture(road):
    tokenizer = Tokenizer.load(road.tokenizer)
    panels = inspect_tokenizer.panels(describe(tokenizer), None)
    assert [panel.x for panel in panels] == [plot.sizes({1: 1}, "tokens", "bytes").x]
