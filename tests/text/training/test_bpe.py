"""Training: deterministic, complete over bytes, split as Qwen-2 splits, with its actual size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_fn.text.tokenizer import Tokenizer
from slm_fn.text.training import bpe, merges, vocabulary

from ..conftest import CORPUS


def token_texts(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.token_bytes(i).decode(errors="replace") for i in tokenizer.encode(text)]


def test_the_same_documents_give_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    assert bpe.train(iter(CORPUS), 400).to_json() == tokenizer.to_json()
    assert bpe.train(CORPUS[:1], 400) != tokenizer


def test_reserved_tokens_come_first_and_the_size_is_actual(tokenizer: Tokenizer) -> None:
    assert tokenizer.special_tokens == {name: i for i, name in enumerate(vocabulary.SPECIAL_TOKENS)}
    assert 262 < tokenizer.vocab_size < 400
    small = bpe.train(["ab ab"], 5000)
    assert small.vocab_size == 6 + 256 + 1  # "ab", but not " ab", which occurs once
    assert len({small.token_bytes(i) for i in range(6, small.vocab_size)}) == small.vocab_size - 6


def test_frequent_words_become_tokens_and_rare_pairs_do_not(tokenizer: Tokenizer) -> None:
    assert token_texts(tokenizer, " be") == [" be"]
    assert bpe.train(["zq"], 300).vocab_size == 262
    assert bpe.train(["zq"], 300, min_frequency=1).vocab_size == 263


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("a 12345", ["a", " ", "1", "2", "3", "4", "5"]),
        ("I'LL we've", ["I", "'LL", " we", "'ve"]),
        ("a  b", ["a", " ", " b"]),
        ("x\r\n\r\ny", ["x", "\r\n\r\n", "y"]),
        ("so?!\n z", ["so", "?!\n", " z"]),
    ],
)
def test_merges_stop_where_qwen2_splits(text: str, split: list[str]) -> None:
    merged = bpe.train([text] * 50, 1000)  # all merges there are: a token is a chunk
    assert token_texts(merged, text) == split


def test_progress_counts_characters() -> None:
    reports: list[tuple[int, int]] = []
    bpe.train(["abc", "de"], 262, progress=lambda *report: reports.append(report), method="heap")
    assert reports == [(3, 0), (5, 0)]
    bpe.train(["ab ab"], 263, progress=lambda *report: reports.append(report), method="heap")
    assert reports[2:] == [(5, 0), (5, 257)]


def test_bad_settings_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"too small.*262"):
        bpe.train(["a"], 261)
    with pytest.raises(ValueError, match="distinct"):
        bpe.train(["a"], 300, special_tokens=["<|x|>", "<|x|>"])
    for empty in ([], ["", ""]):
        with pytest.raises(ValueError, match="the corpus is empty"):
            bpe.train(empty, 300)


texts = st.lists(st.text(alphabet="ab \n'1.é", max_size=60), min_size=1, max_size=6)


@given(corpus=texts, size=st.integers(262, 300), least=st.integers(1, 3))
def test_the_three_methods_give_one_tokenizer(corpus: list[str], size: int, least: int) -> None:
    if not any(corpus):
        return
    made = [
        bpe.train(corpus, size, (*vocabulary.SPECIAL_TOKENS,), least, method=method).to_json()
        for method in METHODS
    ]
    assert made[0] == made[1] == made[2]


METHODS = ("fast", "heap", "basic")


def test_fast_uses_rustbpe_or_else_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    heap = merges.learn_heap
    monkeypatch.setattr(merges, "learn_heap", lambda *args: calls.append("heap") or heap(*args))
    frequent = ["to be or not to be"] * 50
    assert bpe.train(frequent, 270).vocab_size == 270
    assert calls == []
    bpe.train(iter(frequent), 270)  # read once only
    bpe.train(frequent, 5000)  # more than there is
    bpe.train(frequent, 270, min_frequency=51)
    assert calls == ["heap"] * 3


def test_the_order_of_documents_does_not_matter() -> None:
    assert bpe.train(CORPUS[::-1], 400).to_json() == bpe.train(CORPUS, 400).to_json()


def test_ranks_that_determine_no_merges_are_rejected() -> None:
    ranks = {byte: i for i, byte in enumerate(bpe.SINGLE_BYTES)}
    assert bpe.merges_from_ranks({**ranks, b"abc": 256}) is None
