"""pipeline/lengths.py: every value is counted once, quantiles are values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_fn.pipeline.lengths import bars, measure, told


@given(values=st.lists(st.integers(0, 10**12), min_size=1, max_size=50))
def test_every_value_is_counted_below_its_power_of_two(values):
    found = measure(values)
    assert sum(found.below.values()) == found.count == len(values)
    for power, number in found.below.items():
        assert number == sum(power // 2 <= value < power for value in values)
    assert (found.shortest, found.longest, found.total) == (min(values), max(values), sum(values))
    quantiles = [found.shortest, found.median, found.percent_90, found.percent_99, found.longest]
    assert quantiles == sorted(quantiles)
    assert set(quantiles) <= set(values)


def test_quantiles_by_hand():
    found = measure(range(1, 102))
    assert (found.median, found.percent_90, found.percent_99) == (51, 91, 100)
    assert told(found, "tokens") == "1 / 51 / 91 / 100 / 101 tokens (shortest, median, 90 %, 99 %, longest)"
    assert bars(measure([1] * 8 + [1000]), width=8) == ["      < 2  ######## 8", "  < 1,024  # 1"]


def test_nothing_to_measure_is_said():
    with pytest.raises(ValueError, match="nothing to measure"):
        measure([])
