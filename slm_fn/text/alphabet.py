"""The characters of a corpus that are worth a token each, the most frequent first.

Invariant: the choice depends on counts alone; equals are ordered by code point.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

ASCII = ("\t", "\n", *map(chr, range(32, 127)))
"""Tab, newline and the printable characters of ASCII."""


def frequencies(chunks: Mapping[str, int]) -> Counter[str]:
    """How often each character occurs in chunks that are counted.

    Example:
        >>> frequencies({"ab": 2, "b": 1})
        Counter({'b': 3, 'a': 2})
    """
    found: Counter[str] = Counter()
    for chunk, count in chunks.items():
        for character in chunk:
            found[character] += count
    return found


def choose(found: Mapping[str, int], coverage: float = 1.0, most: int | None = None) -> list[str]:
    """The most frequent characters that make up `coverage` of the text, in the order of code points.

    Args:
        coverage: share of all characters, counted as often as they occur; the rest are rare ones.
        most: at most so many.

    Raises:
        ValueError: coverage is not in (0, 1].

    Example:
        >>> choose({"a": 90, "c": 9, "b": 1}, coverage=0.95)
        ['a', 'c']

    References: arXiv 1808.06226 (character coverage).
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage must be in (0, 1], got {coverage}")
    chosen, covered, wanted = [], 0, coverage * sum(found.values())
    for character, count in sorted(found.items(), key=lambda item: (-item[1], item[0]))[:most]:
        if covered >= wanted:
            break
        chosen.append(character)
        covered += count
    return sorted(chosen)
