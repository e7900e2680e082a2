"""RoPE: products depend on distance alone, scalings equal those of transformers; ALiBi's slopes."""

import pytest
import torch

from slm_fn.core import random
from slm_fn.nn.config import RopeScaling
from slm_fn.nn.positions import alibi_slopes, attention_factor, rope_frequencies, rope_table, rotate

SCALINGS = {
    "none": RopeScaling(),
    "linear": RopeScaling("linear", factor=2.5),
    "ntk": RopeScaling("ntk", factor=4.0),
    "yarn": RopeScaling("yarn", factor=8.0),
    "yarn-explicit": RopeScaling(
        "yarn", 4.0, 512, beta_fast=16.0, beta_slow=2.0, attention_factor=1.3
    ),
}
CONTEXT = 2048
scaled = pytest.mark.parametrize("name", SCALINGS)


def rotate_at(x, position, theta=10_000.0, name="none"):
    frequencies = rope_frequencies(x.shape[-1], theta, SCALINGS[name], CONTEXT)
    return rotate(x, rope_table(torch.tensor([[position]]), frequencies, x.dtype))


@scaled
@pytest.mark.parametrize("position", [0, 1, 17, 1000])
def test_norms_are_kept_pair_by_pair(position, name):
    x = random.normal(0, (1, 1, 3, 16))
    y = rotate_at(x, position, name=name)
    assert torch.equal(x, y) == (position == 0)
    pairs = [t.unflatten(-1, (2, 8)).norm(dim=-2) for t in (x, y)]
    assert torch.allclose(*pairs, atol=1e-6)


@scaled
def test_products_depend_on_the_distance_alone(name):
    q, k = random.normal(1, (1, 1, 1, 16)), random.normal(2, (1, 1, 1, 16))

    def product(i, j):
        return (rotate_at(q, i, name=name) * rotate_at(k, j, name=name)).sum()

    for distance in (0, 1, 5, 60):
        products = torch.stack([product(i + distance, i) for i in (0, 3, 50, 190)])
        assert (products - products[0]).abs().max() < 1e-4
    assert (product(5, 0) - product(0, 5)).abs() > 1e-2
    assert (product(5, 0) - product(6, 0)).abs() > 1e-2


def test_angles_by_hand():
    # The pair (0, C/2) rotates by one radian per position, (1, C/2 + 1) by theta^(-2/C).
    x = torch.zeros(1, 1, 1, 4)
    x[..., 0], x[..., 1] = 1.0, 1.0
    angles = 3 * torch.tensor([1.0, 100.0 ** (-2 / 4)])
    rotated = rotate_at(x, 3, theta=100.0).flatten()
    assert torch.allclose(rotated, torch.cat([angles.cos(), angles.sin()]))


def test_large_positions_are_exact_in_low_precision():
    # bf16 cannot represent 1001; the table is computed in float32 and rounded once.
    exact = rope_table(torch.tensor([[1000, 1001]]), rope_frequencies(16, 10_000.0), torch.float32)
    rounded = rope_table(
        torch.tensor([[1000, 1001]]), rope_frequencies(16, 10_000.0), torch.bfloat16
    )
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == torch.bfloat16
        assert (a - b.float()).abs().max() <= 2**-8


@scaled
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("channels", [16, 64, 128])
def test_scalings_equal_those_of_transformers(name, theta, channels):
    """`dynamic` at a fixed length equals `ntk`."""
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = SCALINGS[name]
    original = scaling.original_context or int(CONTEXT / scaling.factor)
    settings = {
        "rope_theta": theta,
        "factor": scaling.factor,
        "original_max_position_embeddings": original,
    }
    if scaling.kind == "yarn":
        settings |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        settings |= (
            {"attention_factor": scaling.attention_factor} if scaling.attention_factor else {}
        )
    length, kind = None, {"none": "default", "ntk": "dynamic"}.get(scaling.kind, scaling.kind)
    if kind == "dynamic":
        length, settings["factor"] = int(original * scaling.factor), 1.0
    peer = transformers.LlamaConfig(
        hidden_size=channels * 2,
        num_attention_heads=2,
        max_position_embeddings=original if kind == "dynamic" else CONTEXT,
        rope_parameters={"rope_type": kind, **settings},
    )
    if kind == "default":
        want, factor = theta ** (-torch.arange(0, channels, 2) / channels), 1.0
    else:
        want, factor = ROPE_INIT_FUNCTIONS[kind](peer, torch.device("cpu"), seq_len=length)
    got = rope_frequencies(channels, theta, scaling, CONTEXT)
    assert torch.allclose(got, want, rtol=1e-5)
    assert abs(attention_factor(scaling) - factor) < 1e-6
    assert (got.min() < rope_frequencies(channels, theta).min()) == (name != "none")


def test_alibi_slopes_equal_the_paper_s():
    assert alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(1) == [2.0**-8]
    # 12 heads: the slopes of 8 heads, then every other slope of 16.
    assert alibi_slopes(12) == [2.0**-i for i in range(1, 9)] + [
        2.0 ** -(i + 0.5) for i in range(4)
    ]
    for num_heads in range(1, 40):
        slopes = alibi_slopes(num_heads)
        assert len(set(slopes)) == num_heads
        assert all(0 < slope < 1 for slope in slopes)
