"""data/shuffle.py: many indices at once give the numbers of the scalar permutation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_fn.core import random
from slm_fn.data.batches import shuffle

keys = st.integers(0, 2**64)


@given(keys, st.integers(1, 2**62), st.data())
def test_many_are_the_scalar_ones(key, size, data):
    indices = data.draw(st.lists(st.integers(0, size - 1), max_size=60))
    expected = [random.permute_index(key, index, size) for index in indices]
    assert shuffle.permute(key, np.array(indices, dtype=np.int64), size).tolist() == expected


@given(keys, st.integers(1, 400))
def test_a_whole_range_is_permuted(key, size):
    found = shuffle.permute(key, np.arange(size), size)
    assert found.dtype == np.int64
    assert found.tolist() == [random.permute_index(key, index, size) for index in range(size)]
    assert sorted(found.tolist()) == list(range(size))


def test_what_is_outside_is_refused():
    for bad, size in (([-1], 5), ([0, 5], 5), ([0], 0), ([0], 2**62 + 1)):
        with pytest.raises(ValueError, match="outside range"):
            shuffle.permute(0, np.array(bad), size)
