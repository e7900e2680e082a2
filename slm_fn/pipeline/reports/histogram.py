"""Length histograms: quantiles, counts by powers of two, and both as text.

Invariant: the counts of a histogram sum up to the number of values.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np


class LengthHistogram(msgspec.Struct, frozen=True):
    """The distribution of some lengths: their quantiles, and how many fall into each power of two.

    `below[p]` counts the lengths that are less than `p` and at least `p / 2`.
    """

    count: int
    total: int
    shortest: int
    median: int
    percent_90: int
    percent_99: int
    longest: int
    below: dict[int, int]


def make_histogram(lengths: Sequence[int] | np.ndarray) -> LengthHistogram:
    """Computes the distribution of lengths. Each quantile is one of the lengths, not an average.

    Raises:
        ValueError: there are no lengths.

    Example:
        >>> make_histogram([1, 3, 3, 9]).below
        {2: 1, 4: 2, 16: 1}
    """
    ordered = np.sort(np.asarray(lengths, dtype=np.int64))
    if not len(ordered):
        raise ValueError("there are no lengths to measure")
    exponents, counts = np.unique(np.frexp(ordered)[1], return_counts=True)
    return LengthHistogram(
        count=len(ordered),
        total=int(ordered.sum()),
        shortest=int(ordered[0]),
        median=_quantile(ordered, 0.5),
        percent_90=_quantile(ordered, 0.9),
        percent_99=_quantile(ordered, 0.99),
        longest=int(ordered[-1]),
        below={1 << int(e): int(count) for e, count in zip(exponents, counts, strict=True)},
    )


def _quantile(ordered: np.ndarray, share: float) -> int:
    return int(ordered[int(share * (len(ordered) - 1))])


def format_quantiles(histogram: LengthHistogram, unit: str) -> str:
    """Returns the quantiles as one line of text.

    Example:
        >>> format_quantiles(make_histogram([1, 3, 3, 9]), "tokens")
        '1 / 3 / 3 / 3 / 9 tokens (shortest, median, 90 %, 99 %, longest)'
    """
    quantiles = (
        histogram.shortest,
        histogram.median,
        histogram.percent_90,
        histogram.percent_99,
        histogram.longest,
    )
    numbers = " / ".join(f"{quantile:,}" for quantile in quantiles)
    return f"{numbers} {unit} (shortest, median, 90 %, 99 %, longest)"


def format_bars(histogram: LengthHistogram, width: int = 40) -> list[str]:
    """Returns the counts by powers of two as lines of text; the longest bar has `width` characters.

    Example:
        >>> format_bars(make_histogram([1, 3, 3, 9]), width=4)
        ['   < 2  ## 1', '   < 4  #### 2', '  < 16  ## 1']
    """
    max_count = max(histogram.below.values())
    label_width = max(len(f"{power:,}") for power in histogram.below) + 4
    lines = []
    for power, count in sorted(histogram.below.items()):
        label = f"< {power:,}"
        bar = "#" * -(-width * count // max_count)
        lines.append(f"{label:>{label_width}}  {bar} {count:,}")
    return lines
