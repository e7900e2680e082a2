"""Distributions in words and numbers: quantiles, and counts by powers of two.

Invariant: the counts of a histogram sum up to the number of values.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np


class Lengths(msgspec.Struct, frozen=True):
    """How long things are: quantiles, and how many are below each power of two (but not below the one before)."""

    count: int
    total: int
    shortest: int
    median: int
    percent_90: int
    percent_99: int
    longest: int
    below: dict[int, int]


def measure(values: Sequence[int] | np.ndarray) -> Lengths:
    """Lengths as figures; quantiles are lengths that occur.

    Raises:
        ValueError: no values.

    Example:
        >>> measure([1, 3, 3, 9]).below
        {2: 1, 4: 2, 16: 1}
    """
    found = np.sort(np.asarray(values, dtype=np.int64))
    if not len(found):
        raise ValueError("there is nothing to measure the lengths of")
    median, most, nearly = (int(found[int(share * (len(found) - 1))]) for share in (0.5, 0.9, 0.99))
    powers, counts = np.unique(np.frexp(found)[1], return_counts=True)
    below = {1 << int(power): int(number) for power, number in zip(powers, counts, strict=True)}
    return Lengths(len(found), int(found.sum()), int(found[0]), median, most, nearly, int(found[-1]), below)


def told(lengths: Lengths, unit: str) -> str:
    """The quantiles in a line for a person."""
    numbers = (lengths.shortest, lengths.median, lengths.percent_90, lengths.percent_99, lengths.longest)
    return " / ".join(f"{number:,}" for number in numbers) + f" {unit} (shortest, median, 90 %, 99 %, longest)"


def bars(lengths: Lengths, width: int = 40) -> list[str]:
    """The histogram as lines of text.

    Example:
        >>> bars(measure([1, 3, 3, 9]), width=4)
        ['   < 2  ## 1', '   < 4  #### 2', '  < 16  ## 1']
    """
    most, digits = max(lengths.below.values()), max(len(f"{power:,}") for power in lengths.below) + 1
    return [
        f"{'< ' + format(power, ','):>{digits + 3}}  {'#' * -(-width * number // most)} {number:,}"
        for power, number in sorted(lengths.below.items())
    ]
