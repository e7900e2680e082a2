"""Counting the chunks of a corpus as it streams by, in memory that is bounded by a stated cap.

Invariant: memory follows the number of different chunks, never the size of the corpus, and stays under the cap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

MOST = 4_000_000
"""Different chunks kept at once, some 500 MB of them. English reaches 210,000 in 64 MB."""


def count(documents: Iterable[str], split: Callable[[str], list[str]], most: int = MOST) -> Counter[str]:
    """How often each chunk occurs.

    When there are more than `most`, the rarest are dropped until half as many are left, as often as it takes (lossy
    counting): only chunks rarer than those kept lose counts, which no merge would have come from.

    Example:
        >>> count(["a b", "b"], str.split)
        Counter({'b': 2, 'a': 1})

    References: Manku and Motwani, 2002 (lossy counting).
    """
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(split(document))
        if len(counts) > most:
            counts = drop_rarest(counts, most // 2)
    return counts


def drop_rarest(counts: Counter[str], most: int) -> Counter[str]:
    """The chunks that occur more often than the last ones to go when at most `most` may stay.

    Example:
        >>> drop_rarest(Counter(a=5, b=1, c=1), most=2)
        Counter({'a': 5})
    """
    frequencies = Counter(counts.values())
    least, kept = 0, len(counts)
    while kept > most:
        least = min(frequency for frequency in frequencies if frequency > least)
        kept -= frequencies[least]
    return Counter({chunk: seen for chunk, seen in counts.items() if seen > least})
