"""The heap learns what the plain method learns; both obey the stated rule."""

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from slm_fn.text import merges

LETTERS = "abcd"
words = st.dictionaries(st.lists(st.integers(0, 3), max_size=14).map(tuple), st.integers(1, 5), min_size=1, max_size=8)


@given(words=words, num=st.integers(0, 30), least=st.integers(1, 4))
def test_heap_is_basic_on_any_chunks(words: dict[tuple[int, ...], int], num: int, least: int) -> None:
    plain = merges.basic(words, LETTERS, 4 + num, least)
    assert merges.heap(words, LETTERS, 4 + num, least) == plain


@given(words=words, least=st.integers(1, 4))
def test_the_rule_is_kept_at_every_step(words: dict[tuple[int, ...], int], least: int) -> None:
    """Replayed on the text itself: no pair is more frequent than the one merged, and none before it as frequent."""
    order = {letter: i for i, letter in enumerate(LETTERS)}
    spelt = {tuple(LETTERS[i] for i in word): count for word, count in words.items()}
    for left, right in merges.heap(words, LETTERS, 12, least):
        counts: Counter[tuple[str, str]] = Counter()
        for word, count in spelt.items():
            for pair in pairwise(word):
                counts[pair] += count
        best = min(counts, key=lambda pair: (-counts[pair], order[pair[0]], order[pair[1]]))
        assert best == (left, right)
        assert counts[best] >= least
        order.setdefault(left + right, len(order))
        spelt = dict(_merged(spelt, left, right))


def _merged(spelt: dict[tuple[str, ...], int], left: str, right: str) -> Counter[tuple[str, ...]]:
    out: Counter[tuple[str, ...]] = Counter()
    for word, count in spelt.items():
        row: list[str] = []
        for piece in word:
            if row and row[-1] == left and piece == right and not row[-1].endswith("!"):
                row[-1] = left + right + "!"  # just made: not to be merged again in this pass
            else:
                row.append(piece)
        out[tuple(piece.removesuffix("!") for piece in row)] += count
    return out


def test_runs_merge_from_left_to_right() -> None:
    assert merges.heap({(0,) * 7: 1}, "a", 4) == [("a", "a"), ("aa", "aa"), ("aa", "a")]


def test_ties_go_to_the_smaller_symbols() -> None:
    assert merges.heap({(1, 0): 1, (0, 1): 1, (0, 2): 1}, "abc", 4) == [("a", "b")]


def test_progress_counts_pieces() -> None:
    seen: list[int] = []
    merges.heap({(0, 1, 2): 2}, "abc", 5, progress=seen.append)
    assert seen == [4, 5]
