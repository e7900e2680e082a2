"""Counting the chunks of a streamed corpus in bounded memory.

Invariant: memory follows the number of distinct chunks, never the corpus size, and stays bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

MAX_CHUNKS = 4_000_000
"""Distinct chunks kept at once, about 500 MB of them. 64 MB of English has 210,000."""


def count_chunks(
    documents: Iterable[str], split: Callable[[str], list[str]], max_chunks: int = MAX_CHUNKS
) -> Counter[str]:
    """Returns how often each chunk occurs.

    When there are more than `max_chunks` distinct chunks, the rarest are dropped until half as
    many are left, as often as needed (lossy counting). Only chunks rarer than the ones kept lose
    counts, and no merge would have come from those.

    Args:
        documents: the texts to count in, read once.
        split: returns the chunks of a text.
        max_chunks: distinct chunks kept at once.

    Example:
        >>> count_chunks(["a b", "b"], str.split)
        Counter({'b': 2, 'a': 1})

    References: Manku and Motwani, 2002 (lossy counting).
    """
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(split(document))
        if len(counts) > max_chunks:
            counts = drop_rarest(counts, max_chunks // 2)
    return counts


def drop_rarest(counts: Counter[str], max_chunks: int) -> Counter[str]:
    """Returns the most frequent chunks, at most `max_chunks` of them.

    Chunks of equal count are kept or dropped together, so the result may be smaller.

    Example:
        >>> drop_rarest(Counter(a=5, b=1, c=1), max_chunks=2)
        Counter({'a': 5})
    """
    num_chunks_by_count = Counter(counts.values())
    threshold = 0
    num_kept = len(counts)
    while num_kept > max_chunks:
        threshold = min(count for count in num_chunks_by_count if count > threshold)
        num_kept -= num_chunks_by_count[threshold]
    return Counter({chunk: count for chunk, count in counts.items() if count > threshold})
