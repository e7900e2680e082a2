"""pipeline/reports/inspect_tokenizer.py: figures equal those counted by hand."""

import json

import pytest

from slm_fn.data.io.documents import Document
from slm_fn.pipeline.reports import inspect_tokenizer, text_plots
from slm_fn.pipeline.reports.inspect_tokenizer import (
    describe,
    format_token,
    measure,
    read_texts,
    summarize,
)
from slm_fn.text.tokenizer import Tokenizer
from slm_fn.text.training import bpe, char


@pytest.fixture(scope="module")
def small():
    return bpe.build_tokenizer(
        [(b"a", b"b"), (b"ab", b"ab"), (b" ", b"abab")], bpe.patterns.SPLIT_PATTERNS["qwen2"]
    )


def test_a_description_has_the_properties_of_the_tokenizer(small):
    description = describe(small)
    assert description["kind"] == "bpe"
    assert description["vocab_size"] == 6 + 256 + 3
    assert description["merges"] == 3
    assert description["pattern"] == "qwen2"
    assert description["engine"] in ("gigatoken", "tokenizers")
    assert description["token_lengths"] == {1: 256, 2: 1, 4: 1, 5: 1}
    assert list(description["longest_tokens"].items())[:3] == [
        (264, "' abab'"),
        (263, "'abab'"),
        (262, "'ab'"),
    ]
    assert json.loads(json.dumps(description))["specials"]["<|end|>"] == 5


def test_texts_are_measured(small):
    documents = [
        Document("one", "abab abab"),
        Document("two", "ab"),
        Document("two", "ab", 1),
        Document("end", "é"),
    ]
    stats = measure(small, documents)
    assert stats.num_bytes.tolist() == [9, 4, 2]
    assert stats.num_tokens.tolist() == [2, 2, 2]  # the chunks of one text are one
    summary = summarize(small, stats)
    assert (
        summary["documents"],
        summary["bytes"],
        summary["tokens"],
        summary["bytes_per_token"],
    ) == (
        3,
        15,
        6,
        2.5,
    )
    assert summary["round_trip"]
    assert summary["most_frequent"] == {
        "'ab'": 2,
        "'abab'": 1,
        "' abab'": 1,
        "b'\\xa9'": 1,
        "b'\\xc3'": 1,
    }
    assert summary["unused"] == 259 - 5
    assert [panel.title for panel in inspect_tokenizer.make_panels(describe(small), stats)] == [
        "Length of 259 tokens", "5 tokens used, 260 never", "Compression by document",
    ]  # fmt: skip


def test_altered_documents_are_named():
    tokenizer = char.train(["abc"])
    documents = [Document("good", "abc"), Document("bad", "abx")]
    summary = summarize(tokenizer, measure(tokenizer, documents))
    assert not summary["round_trip"]
    assert summary["altered"] == ["bad"]
    assert describe(tokenizer)["pattern"] is None


def test_tokens_are_formatted_readably(small):
    spaces = bpe.build_tokenizer([(b" ", b" "), (b"  ", b"  "), (b"    ", b"    ")], r"[\s\S]+")
    assert [format_token(small, i) for i in (0, 6 + 10, 6 + 0xC3, 264)] == [
        "<|endoftext|>",
        "'\\n'",
        "b'\\xc3'",
        "' abab'",
    ]
    assert format_token(spaces, spaces.vocab_size - 1) == "' ' * 8"


def test_any_file_is_read_as_a_text(tmp_path, project):
    (tmp_path / "code.py").write_text("x = 1\n")
    assert list(read_texts(tmp_path / "code.py")) == [Document("code.py", "x = 1\n")]
    assert len(list(read_texts(project.text))) == 8
    (tmp_path / "odd.bin").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"odd.bin is not UTF-8 text"):
        read_texts(tmp_path / "odd.bin")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(read_texts(tmp_path / "nowhere"))
    problems = []
    (tmp_path / "a.jsonl").write_text('{"text": "ab"}\n{"te\n')
    assert [document.text for document in read_texts(tmp_path / "a.jsonl", problems.append)] == [
        "ab"
    ]
    assert len(problems) == 1


def test_without_texts_there_is_one_panel(project):
    tokenizer = Tokenizer.load(project.tokenizer)
    panels = inspect_tokenizer.make_panels(describe(tokenizer), None)
    assert [panel.x_label for panel in panels] == [
        text_plots.size_panel({1: 1}, "tokens", "bytes").x_label
    ]
