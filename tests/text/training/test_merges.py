"""The heap learns what the textbook algorithm learns; both follow the stated rule."""

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from slm_fn.text.training import merges

LETTERS = "abcd"
words = st.dictionaries(
    st.lists(st.integers(0, 3), max_size=14).map(tuple), st.integers(1, 5), min_size=1, max_size=8
)


@given(words=words, num=st.integers(0, 30), least=st.integers(1, 4))
def test_heap_is_basic_on_any_chunks(
    words: dict[tuple[int, ...], int], num: int, least: int
) -> None:
    plain = merges.learn_basic(words, LETTERS, 4 + num, least)
    assert merges.learn_heap(words, LETTERS, 4 + num, least) == plain


@given(words=words, least=st.integers(1, 4))
def test_the_rule_is_kept_at_every_step(words: dict[tuple[int, ...], int], least: int) -> None:
    """Replayed on the text: each merge is of the most frequent pair, ties in the stated order."""
    order = {letter: i for i, letter in enumerate(LETTERS)}
    chunks = {tuple(LETTERS[i] for i in word): count for word, count in words.items()}
    for left, right in merges.learn_heap(words, LETTERS, 12, least):
        counts: Counter[tuple[str, str]] = Counter()
        for word, count in chunks.items():
            for pair in pairwise(word):
                counts[pair] += count
        best = min(counts, key=lambda pair: (-counts[pair], order[pair[0]], order[pair[1]]))
        assert best == (left, right)
        assert counts[best] >= least
        order.setdefault(left + right, len(order))
        chunks = dict(_merged(chunks, left, right))


def _merged(chunks: dict[tuple[str, ...], int], left: str, right: str) -> Counter[tuple[str, ...]]:
    out: Counter[tuple[str, ...]] = Counter()
    for word, count in chunks.items():
        merged: list[str] = []
        for token in word:
            if merged and merged[-1] == left and token == right and not merged[-1].endswith("!"):
                merged[-1] = left + right + "!"  # just made: not to be merged again in this pass
            else:
                merged.append(token)
        out[tuple(token.removesuffix("!") for token in merged)] += count
    return out


def test_runs_merge_from_left_to_right() -> None:
    assert merges.learn_heap({(0,) * 7: 1}, "a", 4) == [("a", "a"), ("aa", "aa"), ("aa", "a")]


def test_ties_go_to_the_smaller_symbols() -> None:
    assert merges.learn_heap({(1, 0): 1, (0, 1): 1, (0, 2): 1}, "abc", 4) == [("a", "b")]


def test_progress_counts_tokens() -> None:
    reports: list[int] = []
    merges.learn_heap({(0, 1, 2): 2}, "abc", 5, progress=reports.append)
    assert reports == [4, 5]
