"""Chance as an argument: permutations permute, keys name numbers, nothing global is touched."""

import random as python_random
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm_fn.core import random

keys = st.integers(0, 2**56 - 1)


@given(keys, st.integers(1, 300))
def test_permute_is_a_permutation(key, size):
    assert sorted(random.permute_index(key, i, size) for i in range(size)) == list(range(size))


@given(keys, st.integers(1, 2**40), st.data())
def test_permute_stays_inside_sizes_that_no_index_would_fit(key, size, data):
    index = data.draw(st.integers(0, size - 1))
    assert 0 <= random.permute_index(key, index, size) < size


def test_permute_refuses_what_is_outside():
    for index in (-1, 5):
        with pytest.raises(ValueError, match=f"index {index} is not in range"):
            random.permute_index(0, index, 5)


def test_permutations_look_random():
    # Chi-squared over the image of each index of 10: 9 degrees of freedom, 27.9 at p = 0.001.
    for index in range(10):
        counts = Counter(random.permute_index(random.fold_in(3, n), index, 10) for n in range(2000))
        assert sum((counts[image] - 200) ** 2 / 200 for image in range(10)) < 35
    # Neighbours do not stay neighbours: of a random permutation of 1000 about one pair in 500 does.
    order = [random.permute_index(5, i, 1000) for i in range(1000)]
    assert sum(abs(a - b) == 1 for a, b in pairwise(order)) < 12


def test_other_keys_give_other_permutations():
    orders = {tuple(random.permute_index(key, i, 12) for i in range(12)) for key in range(50)}
    assert len(orders) == 50


@given(keys, keys, st.text(max_size=5), st.text(max_size=5))
def test_fold_in_tells_keys_and_data_apart(a, b, x, y):
    assert (random.fold_in(a, x) == random.fold_in(b, y)) == ((a, x) == (b, y))


def test_fold_in_is_frozen():
    # Checkpoints and data orders of every release hang on these numbers.
    assert random.fold_in(0, "blocks/attn/q") == 49685394673105879
    assert [random.permute_index(7, i, 10) for i in range(10)] == [0, 8, 2, 4, 5, 6, 1, 3, 9, 7]


@pytest.mark.parametrize("draw", [random.normal, random.uniform])
def test_numbers_depend_on_the_key_alone(draw):
    first = draw(5, (3, 4))
    torch.manual_seed(99)
    python_random.seed(99)
    with torch.device("meta"):  # another default device must not reach the draw
        again = draw(5, (3, 4))
    assert again.device.type == "cpu"
    assert torch.equal(first, again)
    assert not torch.equal(first, draw(6, (3, 4)))


@pytest.mark.parametrize("draw", [random.normal, random.uniform])
def test_the_global_generator_is_left_alone(draw, purely):
    purely(draw, 5, (3, 4))


def test_numbers_have_the_distribution_they_claim():
    x, u = random.normal(0, (20_000,), 0.5), random.uniform(0, (20_000,))
    assert abs(x.mean()) < 0.02
    assert abs(x.std() - 0.5) < 0.02
    assert 0 <= u.min() < 0.001
    assert 0.999 < u.max() < 1
    assert abs(u.mean() - 0.5) < 0.01


SEEDS = random.row_seeds(3, first_row=0, num_rows=24)


def dropped(rate=0.5, seeds=SEEDS, site=0, shape=(96, 64)):
    """Which elements are dropped, (rows, elements), as -1/2 and 1/2."""
    ones = torch.ones(len(seeds), *shape)
    return (random.dropout(ones, rate, seeds, site) == 0).float().flatten(1) - 0.5


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_drop_has_its_rate_and_keeps_the_mean(rate, purely):
    x = torch.full((24, 96, 64), 2.0)
    out = purely(random.dropout, x, rate, SEEDS, 0)
    share, sigma = (out == 0).float().mean(), (rate * (1 - rate) / x.numel()) ** 0.5
    assert abs(share - rate) < 4 * sigma
    assert torch.allclose(out[out != 0], torch.tensor(2 / (1 - rate)))
    rows = (out == 0).float().flatten(1).mean(1)
    assert (rows - rate).abs().max() < 5 * sigma * 24**0.5
    assert random.dropout(x, 0.0, SEEDS, 0) is x


def test_drops_are_independent():
    marks = dropped()
    sigma = (
        0.25 * marks[0].numel() ** -0.5
    )  # of a mean product of independent fair marks, within one row
    products = marks @ marks.T / marks.shape[1]
    assert (products - products.diag().diag()).abs().max() < 5 * sigma  # rows
    everything = sigma * len(SEEDS) ** -0.5
    for lag in (1, 2, 3, 4, 8, 16, 63, 64, 65, 128, 1024, 4096):  # elements
        assert abs((marks[:, lag:] * marks[:, :-lag]).mean()) < 5 * everything * 2
    assert abs((marks * dropped(site=1)).mean()) < 5 * everything  # sites
    later = random.row_seeds(3, first_row=24, num_rows=24)
    assert abs((marks * dropped(seeds=later)).mean()) < 5 * everything  # steps
    assert abs((marks * dropped(seeds=random.row_seeds(4, 0, 24))).mean()) < 5 * everything  # runs
    # A channel is dropped as often as any other, and so is a position.
    assert marks.view(24, 96, 64).mean((0, 1)).abs().max() < 5 * 0.5 * (24 * 96) ** -0.5
    assert marks.view(24, 96, 64).mean((0, 2)).abs().max() < 5 * 0.5 * (24 * 64) ** -0.5


def test_a_row_s_drops_are_its_own():
    marks = dropped()
    assert torch.equal(marks[5:9], dropped(seeds=SEEDS[5:9]))
    assert torch.equal(marks[5:9], dropped(seeds=random.row_seeds(3, first_row=5, num_rows=4)))
    # A shorter row is dropped from as the beginning of a longer one.
    assert torch.equal(marks.view(24, 96, 64)[:, :10], dropped(shape=(10, 64)).view(24, 10, 64))


def test_drop_passes_through_grad_vmap_compile_and_forward_mode(no_shape_checks):
    x = random.normal(1, (24, 5, 7))
    out = random.dropout(x, 0.3, SEEDS, 2)
    each = torch.func.vmap(lambda row, seeds: random.dropout(row[None], 0.3, seeds[None], 2)[0])(
        x, SEEDS
    )
    assert torch.equal(each, out)
    slope = torch.func.grad(lambda x: random.dropout(x, 0.3, SEEDS, 2).sum())(x)
    assert torch.allclose(slope, (out != 0) / 0.7)
    _, forward = torch.func.jvp(
        lambda x: random.dropout(x, 0.3, SEEDS, 2), (x,), (torch.ones_like(x),)
    )
    assert torch.equal(forward, slope)
    compiled = torch.compile(
        lambda x, seeds: random.dropout(x, 0.3, seeds, 2), backend="aot_eager", fullgraph=True
    )
    assert torch.equal(compiled(x, SEEDS), out)
    assert random.dropout(x.bfloat16(), 0.3, SEEDS, 2).dtype == torch.bfloat16


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**56 - 1))
def test_folding_a_number_and_a_tensor_are_one(seeds, data):
    one = torch.tensor([seeds])
    assert torch.equal(
        random.fold_in_seeds(one, data), random.fold_in_seeds(one, torch.tensor([data]))
    )
    # SplitMix64 by Python's integers, which do not wrap around.
    want = random._mix(seeds + data * 0x9E3779B97F4A7C15)
    assert random.fold_in_seeds(one, data).item() % 2**64 == want


def test_noise_is_frozen():
    # What a resumed run drops hangs on these numbers.
    assert random.row_seeds(7, first_row=3, num_rows=2).tolist() == [
        2493001065868230072,
        -1463196925831536802,
    ]
    marks = random.dropout(torch.ones(1, 16), 0.5, random.row_seeds(7, 3, 1), 1) != 0
    assert marks.int().flatten().tolist() == [1, 0, 1, 0, 1, 0, 0, 1, 0, 1, 1, 1, 0, 1, 1, 1]
