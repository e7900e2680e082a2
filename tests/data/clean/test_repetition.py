"""Repetition: both sides of each threshold, and n-gram shares against a plain count."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_fn.data.clean import repetition
from slm_fn.data.clean.rules import Rule


def numbered(first: int, last: int) -> str:
    return " ".join(f"{i:04d}" for i in range(first, last))


def rows(distinct: int, again: int, sep: str = "\n", long: str = "") -> str:
    return sep.join([*(f"{i:03d}" for i in range(1, distinct)), *["000" + long] * (again + 1)])


@pytest.mark.parametrize(
    ("rule", "kept", "removed"),
    [
        (repetition.duplicate_lines(), rows(70, 30), rows(69, 31)),
        (repetition.duplicate_lines(), rows(70, 30, "\n \n"), rows(69, 31, "\n \n")),
        (repetition.duplicate_paragraphs(), rows(70, 30, "\n\n"), rows(69, 31, "\n\n")),
        (repetition.duplicate_paragraphs(), rows(10, 90, "\n"), rows(10, 90, "\n\n")),
        (repetition.duplicate_line_characters(), rows(80, 20), rows(79, 21)),
        (repetition.duplicate_line_characters(0.1), rows(90, 10), rows(89, 11)),
        (repetition.duplicate_line_characters(), rows(95, 5), rows(95, 5, long="x" * 30)),
        (repetition.duplicate_paragraph_characters(), rows(80, 20, "\n\n"), rows(79, 21, "\n\n")),
        (
            repetition.top_ngram(2),
            "aaaa bbbb " * 10 + numbered(0, 80),
            "aaaa bbbb " * 10 + numbered(0, 79),
        ),
        (repetition.top_ngram(3), "aa bb cc " * 6 + "x" * 164, "aa bb cc " * 6 + "x" * 163),
        (repetition.top_ngram(4), "a b c d " * 4 + "x" * 84, "a b c d " * 4 + "x" * 83),
        (repetition.top_ngram(2, 0.5), "a b a b cccc", "a b a b ccc"),
    ],
    ids=lambda value: value.name if isinstance(value, Rule) else "",
)
def test_a_rule_keeps_on_one_side_and_removes_on_the_other(
    rule: Rule, kept: str, removed: str
) -> None:
    assert rule.apply(kept) is kept
    assert rule.apply(removed) is None


@pytest.mark.parametrize(("n", "percent"), [(5, 15), (6, 14), (7, 13), (8, 12), (9, 11), (10, 10)])
def test_duplicate_ngrams_at_the_thresholds_of_the_paper(n: int, percent: int) -> None:
    again = numbered(0, n)  # n words of 100 n / percent, the second time they stand there
    rule, words = repetition.duplicate_ngrams(n), 100 * n // percent
    assert rule.name == f"duplicate_{n}_grams"
    kept, removed = (f"{numbered(0, m - n)} {again}" for m in (words + 1, words - 1))
    assert rule.apply(kept) is kept
    assert rule.apply(removed) is None
    assert repetition.duplicate_ngrams(n, 1.0).apply(removed) is removed
    other = f"{numbered(0, n + 2)} {numbered(1, n)}"  # n - 1 words again are no run of n
    assert rule.apply(other) is other


def shares(words: list[str], n: int) -> tuple[float, float]:
    """(share of characters in the top n-gram, in duplicate n-grams), by looking at each n-gram."""
    runs = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    counts, again, seen = Counter(runs), set(), set()
    for i, run in enumerate(runs):
        if run in seen:
            again |= set(range(i, i + n))
        seen.add(run)
    most = max(counts.values(), default=0)
    size = max((len("".join(run)) for run, count in counts.items() if count == most), default=0)
    tops = []
    for top in (
        run for run, count in counts.items() if count == most > 1 and len("".join(run)) == size
    ):
        tops.append({j for i, run in enumerate(runs) if run == top for j in range(i, i + n)})
    total = len("".join(words))
    covered = [sum(len(words[i]) for i in places) / total for places in [*tops, again]]
    return max(covered[:-1], default=0.0), covered[-1]


@settings(max_examples=250, deadline=None)
@given(
    words=st.lists(
        st.sampled_from(["a", "bb", "ccc", "é", "日本", "dddd"]), min_size=1, max_size=40
    ),
    n=st.integers(1, 6),
)
def test_shares_are_those_of_a_plain_count(words: list[str], n: int) -> None:
    text = " \n".join(words)
    top, again = shares(words, n)
    assert repetition.duplicate_ngrams(n, again + 1e-9).apply(text) is text
    assert repetition.top_ngram(n, top + 1e-9).apply(text) is text
    if again:
        assert repetition.duplicate_ngrams(n, again - 1e-9).apply(text) is None
    if top and len(words) > n:
        lowest = min(top, 1e-9)
        assert repetition.top_ngram(n, lowest).apply(text) is None


def test_n_without_a_default_needs_one() -> None:
    with pytest.raises(
        ValueError, match=r"^top_ngram: n 5 must be one of 2, 3, 4, or at least 1 and come with"
    ):
        repetition.top_ngram(5)
    with pytest.raises(ValueError, match="duplicate_ngrams: n 0"):
        repetition.duplicate_ngrams(0, 0.5)
    assert repetition.top_ngram(5, 0.5).name == "top_5_gram"
