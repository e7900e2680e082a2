"""Rotary positions: a rotation whose products depend on distance alone, laid out as Hugging Face's Llama has it."""

import pytest
import torch

from slm_fn.core import random
from slm_fn.nn.positions import frequencies, rope_table, rotate


def turned(x, place, theta=10_000.0):
    return rotate(x, rope_table(torch.tensor([[place]]), frequencies(x.shape[-1], theta), x.dtype))


@pytest.mark.parametrize("place", [0, 1, 17, 1000])
def test_norms_are_kept_pair_by_pair(place):
    x = random.normal(0, (1, 1, 3, 16))
    y = turned(x, place)
    assert torch.equal(x, y) == (place == 0)
    pairs = [t.unflatten(-1, (2, 8)).norm(dim=-2) for t in (x, y)]
    assert torch.allclose(*pairs, atol=1e-6)


def test_products_depend_on_the_distance_alone():
    q, k = random.normal(1, (1, 1, 1, 16)), random.normal(2, (1, 1, 1, 16))

    def product(i, j):
        return (turned(q, i) * turned(k, j)).sum()

    for distance in (0, 1, 5, 60):
        products = torch.stack([product(i + distance, i) for i in (0, 3, 50, 190)])
        assert (products - products[0]).abs().max() < 1e-4
    assert (product(5, 0) - product(0, 5)).abs() > 1e-2
    assert (product(5, 0) - product(6, 0)).abs() > 1e-2


def test_angles_by_hand():
    # Channel 0 turns with channel C/2 by one radian a place, channel 1 with C/2 + 1 by theta^(-2/C).
    x = torch.zeros(1, 1, 1, 4)
    x[..., 0], x[..., 1] = 1.0, 1.0
    angles = 3 * torch.tensor([1.0, 100.0 ** (-2 / 4)])
    assert torch.allclose(turned(x, 3, theta=100.0).flatten(), torch.cat([angles.cos(), angles.sin()]))


def test_far_places_are_exact_in_low_precision():
    # bf16 cannot tell place 1001 from 1000; the table is computed in float32 and rounded once.
    exact = rope_table(torch.tensor([[1000, 1001]]), frequencies(16, 10_000.0), torch.float32)
    rounded = rope_table(torch.tensor([[1000, 1001]]), frequencies(16, 10_000.0), torch.bfloat16)
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == torch.bfloat16
        assert (a - b.float()).abs().max() <= 2**-8
