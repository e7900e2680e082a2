"""serve/middleware/token_budget.py: each client has its own rate, and the table does not grow."""

import pytest

from slm_fn.serve.middleware.token_budget import TokenBudget
from slm_fn.serve.protocol.errors import ApiError


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def budget(clock):
    return TokenBudget(60, clock=clock)


def test_one_minute_of_tokens_is_the_limit(budget, clock):
    assert budget.reserve("ada", 40) == 40
    with pytest.raises(ApiError) as error:
        budget.reserve("ada", 30)
    assert (error.value.status, error.value.retry_after) == (429, 10)
    assert budget.reserve("bob", 60) == 60
    clock.now = 10.0
    assert budget.reserve("ada", 30) == 30
    assert budget.available("ada") == 0


def test_unused_tokens_are_returned_up_to_one_minute_of_them(budget):
    budget.reserve("ada", 60)
    budget.give_back("ada", 20)
    assert budget.reserve("ada", 20) == 20
    budget.give_back("ada", 1000)
    assert budget.available("ada") == 60


def test_a_request_for_more_than_the_budget_takes_all_of_it(budget):
    assert budget.reserve("ada", 1000) == 60
    assert budget.available("ada") == 0


def test_without_a_limit_nothing_is_counted():
    budget = TokenBudget(0)
    assert budget.reserve("ada", 10**9) == 0
    assert budget.buckets == {}


def test_clients_without_requests_for_a_minute_are_removed(budget, clock):
    for i in range(100):
        budget.reserve(f"address {i}", 60)
    clock.now = 61.0
    budget.reserve("ada", 1)
    assert len(budget.buckets) == 1
