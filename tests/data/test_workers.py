"""data/workers.py: batches come back in order, few are under way, an error arrives at its place."""

import operator
from functools import partial
from itertools import count

import pytest

from slm_fn.data.workers import in_order


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_keep_their_order(workers):
    double = partial(operator.mul, 2)
    assert list(in_order(range(50), double, workers)) == [(i, 2 * i) for i in range(50)]


@pytest.mark.parametrize(("workers", "most"), [(0, 1), (2, 5)])
def test_few_batches_are_under_way(workers, most):
    read = []

    def batches():
        for i in count():
            read.append(i)
            yield i

    stream = in_order(batches(), operator.neg, workers)
    for i in range(20):
        assert next(stream) == (i, -i)
        assert len(read) <= i + most
    stream.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_arrives_at_its_place(workers):
    stream = in_order([1, 0, 2], partial(operator.truediv, 1), workers)
    assert next(stream) == (1, 1.0)
    with pytest.raises(ZeroDivisionError):
        next(stream)
