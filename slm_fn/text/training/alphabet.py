"""The characters of a corpus that get a token each, the most frequent first.

Invariant: the choice depends on the counts alone; equal counts are ordered by code point.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

ASCII_CHARACTERS = ("\t", "\n", *map(chr, range(32, 127)))
"""Tab, newline and the printable characters of ASCII."""


def count_characters(chunk_counts: Mapping[str, int]) -> Counter[str]:
    """Returns how often each character occurs in a corpus.

    Args:
        chunk_counts: every chunk of the corpus with the number of its occurrences.

    Example:
        >>> count_characters({"ab": 2, "b": 1})
        Counter({'b': 3, 'a': 2})
    """
    counts: Counter[str] = Counter()
    for chunk, count in chunk_counts.items():
        for character in chunk:
            counts[character] += count
    return counts


def select_characters(
    counts: Mapping[str, int], coverage: float = 1.0, max_characters: int | None = None
) -> list[str]:
    """Returns the most frequent characters that make up `coverage` of the text, by code point.

    Args:
        counts: every character with the number of its occurrences.
        coverage: share of all occurrences to cover, in (0, 1]; the characters left out are rare.
        max_characters: upper bound on the number of characters; None for no bound.

    Raises:
        ValueError: coverage is not in (0, 1].

    Example:
        >>> select_characters({"a": 90, "c": 9, "b": 1}, coverage=0.95)
        ['a', 'c']

    References: arXiv 1808.06226 (character coverage).
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage must be in (0, 1], got {coverage}")

    def by_frequency(entry: tuple[str, int]) -> tuple[int, str]:
        character, count = entry
        return -count, character

    target = coverage * sum(counts.values())
    selected: list[str] = []
    covered = 0
    for character, count in sorted(counts.items(), key=by_frequency)[:max_characters]:
        if covered >= target:
            break
        selected.append(character)
        covered += count
    return sorted(selected)
