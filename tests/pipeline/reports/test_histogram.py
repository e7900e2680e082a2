"""pipeline/reports/histogram.py: every length is counted once, and quantiles are lengths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_fn.pipeline.reports.histogram import format_bars, format_quantiles, make_histogram


@given(lengths=st.lists(st.integers(0, 10**12), min_size=1, max_size=50))
def test_every_length_is_counted_below_its_power_of_two(lengths):
    histogram = make_histogram(lengths)
    assert sum(histogram.below.values()) == histogram.count == len(lengths)
    for power, count in histogram.below.items():
        assert count == sum(power // 2 <= length < power for length in lengths)
    assert histogram.shortest == min(lengths)
    assert histogram.longest == max(lengths)
    assert histogram.total == sum(lengths)
    quantiles = [
        histogram.shortest,
        histogram.median,
        histogram.percent_90,
        histogram.percent_99,
        histogram.longest,
    ]
    assert quantiles == sorted(quantiles)
    assert set(quantiles) <= set(lengths)


def test_quantiles_equal_those_computed_by_hand():
    histogram = make_histogram(range(1, 102))
    assert (histogram.median, histogram.percent_90, histogram.percent_99) == (51, 91, 100)
    assert (
        format_quantiles(histogram, "tokens")
        == "1 / 51 / 91 / 100 / 101 tokens (shortest, median, 90 %, 99 %, longest)"
    )
    bars = format_bars(make_histogram([1] * 8 + [1000]), width=8)
    assert bars == ["      < 2  ######## 8", "  < 1,024  # 1"]


def test_no_lengths_are_an_error():
    with pytest.raises(ValueError, match="no lengths to measure"):
        make_histogram([])
