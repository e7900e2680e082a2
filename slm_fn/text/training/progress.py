"""Progress reports of tokenizer training.

Invariant: the number of characters read never decreases from one report to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

ProgressCallback = Callable[[int, int], None]
"""Receives the number of characters read and the number of tokens learned."""


def ignore_progress(num_characters: int, num_tokens: int) -> None:
    """Discards a progress report."""


def report_reading(documents: Iterable[str], progress: ProgressCallback) -> Iterator[str]:
    """Yields the documents and reports the number of characters read after each.

    Example:
        >>> list(report_reading(["abc", "de"], print))
        3 0
        5 0
        ['abc', 'de']
    """
    num_characters = 0
    for document in documents:
        yield document
        num_characters += len(document)
        progress(num_characters, 0)


def report_learning(
    chunk_counts: Mapping[str, int], progress: ProgressCallback
) -> Callable[[int], None]:
    """Returns a callback that reports the number of tokens learned, after all text was read.

    Args:
        chunk_counts: every chunk of the corpus with the number of its occurrences.
        progress: receives the reports.

    Example:
        >>> report_learning({"ab": 2, "c": 1}, print)(257)
        5 257
    """
    num_characters = sum(len(chunk) * count for chunk, count in chunk_counts.items())
    return partial(progress, num_characters)
