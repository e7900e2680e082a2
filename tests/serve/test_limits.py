"""serve/limits.py: nobody spends more than the rate, others do not pay for it, and the table does not grow."""

import pytest

from slm_fn.serve.errors import ApiError
from slm_fn.serve.limits import TokenRate


@pytest.fixture
def rate():
    made = TokenRate(60, clock=lambda: made.now)
    made.now = 0.0
    return made


def test_a_minutes_worth_and_no_more(rate):
    assert rate.take("ada", 40) == 40
    with pytest.raises(ApiError) as error:
        rate.take("ada", 30)
    assert (error.value.status, error.value.retry_after) == (429, 10)
    assert rate.take("bob", 60) == 60
    rate.now = 10.0
    assert rate.take("ada", 30) == 30
    assert rate.level("ada") == 0


def test_what_was_not_used_comes_back_and_never_more_than_a_minutes_worth(rate):
    rate.take("ada", 60)
    rate.give_back("ada", 20)
    assert rate.take("ada", 20) == 20
    rate.give_back("ada", 1000)
    assert rate.level("ada") == 60


def test_more_than_a_minutes_worth_takes_all_there_is(rate):
    assert rate.take("ada", 1000) == 60
    assert rate.level("ada") == 0


def test_no_limit_counts_nothing():
    free = TokenRate(0)
    assert free.take("ada", 10**9) == 0
    assert free.buckets == {}


def test_who_has_not_asked_for_a_minute_is_forgotten(rate):
    for i in range(100):
        rate.take(f"address {i}", 60)
    rate.now = 61.0
    rate.take("ada", 1)
    assert len(rate.buckets) == 1
