"""Gopher's rules against repetition: lines and paragraphs that come again, and runs of words that do.

    Gopher    Rae et al., arXiv 2112.11446, appendix A.1.1, table A1

A line, a paragraph or a run of words is a duplicate where it stands for the second time or later: what is counted is
what could be taken out. (Counting the first occurrences too, which the paper's words allow, gives up to twice as much.)
Characters are those of words or lines, without the space around them.

Invariant: a rule is picklable and pure; runs of words are told apart by 64-bit hashes that depend on the text alone.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from slm_fn.data.minhash import BASE, mixed
from slm_fn.data.rules import Rule, lines_of, when, words_of

TOP = {2: 0.20, 3: 0.18, 4: 0.16}
DUPLICATE = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def duplicate_lines(most: float = 0.3) -> Rule:
    """At most this share of the lines is a duplicate."""
    return when("duplicate_lines", _distinct, most=most, paragraphs=False, characters=False)


def duplicate_paragraphs(most: float = 0.3) -> Rule:
    """At most this share of the paragraphs, which empty lines part, is a duplicate."""
    return when("duplicate_paragraphs", _distinct, most=most, paragraphs=True, characters=False)


def duplicate_line_characters(most: float = 0.2) -> Rule:
    """At most this share of the characters is in duplicate lines; FineWeb (arXiv 2406.17557) takes 0.1."""
    return when("duplicate_line_characters", _distinct, most=most, paragraphs=False, characters=True)


def duplicate_paragraph_characters(most: float = 0.2) -> Rule:
    """At most this share of the characters is in duplicate paragraphs."""
    return when("duplicate_paragraph_characters", _distinct, most=most, paragraphs=True, characters=True)


def _distinct(text: str, most: float, paragraphs: bool, characters: bool) -> bool:
    parts = [part for part in map(str.strip, text.split("\n\n")) if part] if paragraphs else lines_of(text)
    once = set(parts)
    if len(once) == len(parts):
        return True
    if characters:
        total = sum(map(len, parts))
        return total - sum(map(len, once)) <= most * total
    return len(parts) - len(once) <= most * len(parts)


def top_ngram(n: int = 2, most: float | None = None) -> Rule:
    """At most this share of the characters is in the commonest run of `n` words; by default the paper's for n 2 to 4.

    Raises:
        ValueError: n has no default and `most` was not given.
    """
    return when(f"top_{n}_gram", _varied, n=n, most=_threshold("top_ngram", n, most, TOP))


def duplicate_ngrams(n: int = 5, most: float | None = None) -> Rule:
    """At most this share of the characters is in duplicate runs of `n` words; by default the paper's for n 5 to 10.

    Raises:
        ValueError: n has no default and `most` was not given.
    """
    return when(f"duplicate_{n}_grams", _fresh, n=n, most=_threshold("duplicate_ngrams", n, most, DUPLICATE))


def _threshold(rule: str, n: int, most: float | None, table: dict[int, float]) -> float:
    if n < 1 or (most is None and n not in table):
        known = ", ".join(map(str, table))
        raise ValueError(f"{rule}: n {n} must be one of {known}, or at least 1 and come with `most`")
    return table[n] if most is None else most


def _varied(text: str, n: int, most: float) -> bool:
    lengths, values = _words(text)
    if len(lengths) <= n:
        return True
    runs, first, counts = np.unique(_runs(values, n), return_index=True, return_counts=True)
    if counts.max() == 1:
        return True
    # Of several that are as frequent the longest counts.
    sizes = np.add.reduce([lengths[first + k] for k in range(n)])
    top = np.argmax(np.where(counts == counts.max(), sizes, -1))
    return _covered(_runs(values, n) == runs[top], n, lengths) <= most * int(lengths.sum())


def _fresh(text: str, n: int, most: float) -> bool:
    lengths, values = _words(text)
    if len(lengths) <= n:
        return True
    again = np.ones(len(lengths) - n + 1, bool)
    again[np.unique(_runs(values, n), return_index=True)[1]] = False
    return _covered(again, n, lengths) <= most * int(lengths.sum())


def _covered(starts: np.ndarray, n: int, lengths: np.ndarray) -> int:
    """Characters of the words in runs that begin at `starts`; where runs overlap, once."""
    inside = np.zeros(len(lengths), bool)
    for k in range(n):
        inside[k : len(starts) + k] |= starts
    return int(lengths[inside].sum())


@lru_cache(maxsize=1)
def _words(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of the words, and 64 bits for each, equal for equal words: their number, mixed."""
    words = words_of(text)
    numbers: dict[str, int] = {}
    ids = np.fromiter((numbers.setdefault(word, len(numbers)) for word in words), np.uint64, len(words))
    return np.fromiter(map(len, words), np.int64, len(words)), mixed((ids + np.uint64(1)) * BASE)


def _runs(values: np.ndarray, n: int) -> np.ndarray:
    """A hash of every run of n words: a polynomial in an odd number modulo 2^64."""
    total = np.zeros(len(values) - n + 1, np.uint64)
    for k in range(n):
        total = total * np.uint64(0xD1342543DE82EF95) + values[k : len(total) + k]
    return total
