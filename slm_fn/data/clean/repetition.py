"""Gopher's rules against repetition: of lines, of paragraphs, and of n-grams of words.

    Gopher    Rae et al., arXiv 2112.11446, appendix A.1.1, table A1

A line, a paragraph or an n-gram is a duplicate from its second occurrence on: what is counted is
what could be removed. (Counting the first occurrences too, which the paper's wording allows, gives
up to twice as much.) Characters are those of words or lines, without the space around them.

Invariant: a rule is picklable and pure; n-grams are compared by 64-bit hashes of the text alone.
"""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np

from slm_fn.data.clean.minhash import HASH_BASE, mix_bits
from slm_fn.data.clean.rules import Rule, keep_if, split_lines, split_words

TOP_NGRAM_LIMITS = {2: 0.20, 3: 0.18, 4: 0.16}
"""The paper's limit on the share of characters in the most frequent n-gram, for each n."""
DUPLICATE_NGRAM_LIMITS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""The paper's limit on the share of characters in duplicate n-grams, for each n."""
_NGRAM_HASH_BASE = np.uint64(0xD1342543DE82EF95)


def duplicate_lines(most: float = 0.3) -> Rule:
    """Keeps texts in which at most this share of the lines is a duplicate."""
    predicate = partial(_has_distinct_lines, most=most)
    return keep_if("duplicate_lines", predicate)


def duplicate_paragraphs(most: float = 0.3) -> Rule:
    """Keeps texts in which at most this share of the paragraphs is a duplicate.

    Empty lines separate paragraphs.
    """
    predicate = partial(_has_distinct_paragraphs, most=most)
    return keep_if("duplicate_paragraphs", predicate)


def duplicate_line_characters(most: float = 0.2) -> Rule:
    """Keeps texts in which at most this share of the characters is in duplicate lines.

    FineWeb (arXiv 2406.17557) uses 0.1.
    """
    predicate = partial(_has_distinct_lines, most=most, by_characters=True)
    return keep_if("duplicate_line_characters", predicate)


def duplicate_paragraph_characters(most: float = 0.2) -> Rule:
    """Keeps texts in which at most this share of the characters is in duplicate paragraphs."""
    predicate = partial(_has_distinct_paragraphs, most=most, by_characters=True)
    return keep_if("duplicate_paragraph_characters", predicate)


def _has_distinct_lines(text: str, most: float, by_characters: bool = False) -> bool:
    return _are_distinct(split_lines(text), most, by_characters)


def _has_distinct_paragraphs(text: str, most: float, by_characters: bool = False) -> bool:
    stripped = map(str.strip, text.split("\n\n"))
    paragraphs = tuple(paragraph for paragraph in stripped if paragraph)
    return _are_distinct(paragraphs, most, by_characters)


def _are_distinct(sections: tuple[str, ...], most: float, by_characters: bool) -> bool:
    """Returns whether at most this share of the sections, or of their characters, is duplicate."""
    distinct = set(sections)
    if len(distinct) == len(sections):
        return True
    if by_characters:
        num_characters = sum(map(len, sections))
        num_distinct = sum(map(len, distinct))
        return num_characters - num_distinct <= most * num_characters
    num_duplicate = len(sections) - len(distinct)
    return num_duplicate <= most * len(sections)


def top_ngram(n: int = 2, most: float | None = None) -> Rule:
    """Keeps texts with at most this share of the characters in the most frequent n-gram.

    Args:
        n: words in an n-gram.
        most: the share; by default the paper's for n 2 to 4.

    Raises:
        ValueError: n has no default and `most` was not given.
    """
    limit = _resolve_limit("top_ngram", n, most, TOP_NGRAM_LIMITS)
    predicate = partial(_has_varied_ngrams, n=n, most=limit)
    return keep_if(f"top_{n}_gram", predicate)


def duplicate_ngrams(n: int = 5, most: float | None = None) -> Rule:
    """Keeps texts with at most this share of the characters in duplicate n-grams.

    Args:
        n: words in an n-gram.
        most: the share; by default the paper's for n 5 to 10.

    Raises:
        ValueError: n has no default and `most` was not given.
    """
    limit = _resolve_limit("duplicate_ngrams", n, most, DUPLICATE_NGRAM_LIMITS)
    predicate = partial(_has_few_duplicate_ngrams, n=n, most=limit)
    return keep_if(f"duplicate_{n}_grams", predicate)


def _resolve_limit(rule: str, n: int, most: float | None, limits: dict[int, float]) -> float:
    if n < 1 or (most is None and n not in limits):
        known = ", ".join(map(str, limits))
        raise ValueError(
            f"{rule}: n {n} must be one of {known}, or at least 1 and come with `most`"
        )
    return limits[n] if most is None else most


def _has_varied_ngrams(text: str, n: int, most: float) -> bool:
    lengths, word_hashes = _hash_words(text)
    if len(lengths) <= n:
        return True
    ngrams = _hash_ngrams(word_hashes, n)
    distinct, first, counts = np.unique(ngrams, return_index=True, return_counts=True)
    highest_count = counts.max()
    if highest_count == 1:
        return True
    # Of several n-grams that are equally frequent, the longest counts.
    sizes = np.add.reduce([lengths[first + k] for k in range(n)])
    is_most_frequent = counts == highest_count
    top = np.argmax(np.where(is_most_frequent, sizes, -1))
    is_top = ngrams == distinct[top]
    num_covered = _count_covered(is_top, n, lengths)
    num_characters = int(lengths.sum())
    return num_covered <= most * num_characters


def _has_few_duplicate_ngrams(text: str, n: int, most: float) -> bool:
    lengths, word_hashes = _hash_words(text)
    if len(lengths) <= n:
        return True
    ngrams = _hash_ngrams(word_hashes, n)
    _, first = np.unique(ngrams, return_index=True)
    is_duplicate = np.ones(len(ngrams), bool)
    is_duplicate[first] = False
    num_covered = _count_covered(is_duplicate, n, lengths)
    num_characters = int(lengths.sum())
    return num_covered <= most * num_characters


def _count_covered(starts: np.ndarray, n: int, lengths: np.ndarray) -> int:
    """Returns the characters of all words in n-grams that begin at `starts`, each word once."""
    num_starts = len(starts)
    is_inside = np.zeros(len(lengths), bool)
    for k in range(n):
        is_inside[k : num_starts + k] |= starts
    return int(lengths[is_inside].sum())


@lru_cache(maxsize=1)
def _hash_words(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the length of each word and 64 bits that equal words share, read-only.

    The bits are those of the word's number in order of first occurrence, mixed.
    """
    words = split_words(text)
    numbers: dict[str, int] = {}
    word_numbers = (numbers.setdefault(word, len(numbers)) for word in words)
    ids = np.fromiter(word_numbers, np.uint64, len(words))
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    one = np.uint64(1)
    hashes = mix_bits((ids + one) * HASH_BASE)
    lengths.flags.writeable = False
    hashes.flags.writeable = False
    return lengths, hashes


def _hash_ngrams(word_hashes: np.ndarray, n: int) -> np.ndarray:
    """Returns a hash of every n-gram: a polynomial in an odd number modulo 2^64."""
    num_ngrams = len(word_hashes) - n + 1
    hashes = np.zeros(num_ngrams, np.uint64)
    for k in range(n):
        kth_words = word_hashes[k : num_ngrams + k]
        hashes = hashes * _NGRAM_HASH_BASE + kth_words
    return hashes
