"""`slm tokenizer train`: every kind, settings from flags, bad input in one line."""

import json

import pytest
from click.testing import CliRunner

from slm_fn.cli.tokenizer import train
from slm_fn.text.tokenizer import Tokenizer


@pytest.fixture
def text(tmp_path):
    (tmp_path / "a.txt").write_text("to be or not to be, that is the question\n" * 40)
    return tmp_path / "a.txt"


def call(*args):
    return CliRunner().invoke(train.command, [str(arg) for arg in args])


@pytest.mark.parametrize("kind", ["bpe", "byte-fallback", "unigram", "char"])
def test_every_kind(kind, text, tmp_path):
    done = call(
        text,
        "--out",
        tmp_path / "t.json",
        "--kind",
        kind,
        "--vocab-size",
        290,
        "--special",
        "<|x|>",
        "--json",
    )
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    tokenizer = Tokenizer.load(tmp_path / "t.json")
    assert (result["kind"], result["vocab_size"], result["fingerprint"]) == (
        kind,
        tokenizer.vocab_size,
        tokenizer.fingerprint,
    )
    assert "<|x|>" in tokenizer.special_tokens


def test_notes_on_the_pattern_and_on_the_vocabulary_size(text, tmp_path):
    done = call(text, "--out", tmp_path / "t.json", "--vocab-size", 5000, "--pattern", r"\w+|\W")
    assert done.exit_code == 0
    assert "no GGUF export" in done.stderr
    assert "no more than" in done.stderr
    assert Tokenizer.load(tmp_path / "t.json").pattern == r"\w+|\W"


def test_methods_write_the_same_file(text, tmp_path):
    for method in ("fast", "heap", "basic"):
        call(text, "--out", tmp_path / method, "--vocab-size", 280, "--method", method)
    assert (
        (tmp_path / "fast").read_bytes()
        == (tmp_path / "heap").read_bytes()
        == (tmp_path / "basic").read_bytes()
    )


def test_unreadable_files_are_reported_and_strict_stops(text, tmp_path):
    (tmp_path / "b.txt").write_bytes(b"\xff")
    done = call(tmp_path, "--out", tmp_path / "t.json", "--vocab-size", 280)
    assert done.exit_code == 0
    assert "b.txt" in done.stderr
    assert isinstance(
        call(tmp_path, "--out", tmp_path / "t.json", "--strict").exception, ValueError
    )


def test_an_unknown_kind_is_a_usage_error(text, tmp_path):
    assert call(text, "--out", tmp_path / "t.json", "--kind", "word").exit_code == 2
