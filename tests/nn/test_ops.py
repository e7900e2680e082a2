"""Stateless layers against their formulas; new leaf kinds register their own product."""

from typing import NamedTuple

import pytest
import torch

from slm_fn.core import random
from slm_fn.nn.ops import affine, embed, layer_norm, linear, logits, rms_norm


def test_linear_is_a_product_in_the_dtype_of_the_activations():
    w, x = random.normal(0, (5, 3)), random.normal(1, (2, 4, 3))
    assert torch.allclose(linear(w, x), torch.einsum("btd,od->bto", x, w), atol=1e-6)
    assert linear(w, x.bfloat16()).dtype == torch.bfloat16


def test_a_leaf_kind_registers_its_product():
    class Doubled(NamedTuple):
        w: torch.Tensor

    with pytest.raises(TypeError, match="Doubled"):
        linear(Doubled(torch.ones(1, 1)), torch.ones(1, 1))
    linear.register(Doubled, lambda weight, x: 2 * linear(weight.w, x))
    assert linear(Doubled(torch.ones(1, 1)), torch.ones(1, 1)) == 2
    assert linear(torch.nn.Parameter(torch.ones(1, 1)), torch.ones(1, 1)) == 1


def test_gradients_have_the_dtype_of_the_weight():
    w = random.normal(0, (5, 3)).requires_grad_()
    linear(w, random.normal(1, (2, 3)).bfloat16()).sum().backward()
    assert w.grad.dtype == torch.float32


def test_embed_returns_rows():
    w = random.normal(0, (7, 3))
    tokens = torch.tensor([[6, 0], [3, 3]])
    assert torch.equal(embed(w, tokens), w[tokens])


def test_rms_norm_equals_its_formula():
    x, gain = random.normal(0, (2, 3, 4)) * 5, random.normal(1, (4,))
    want = x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt() * gain
    assert torch.allclose(rms_norm(gain, x, 0.1), want, atol=1e-6)
    assert rms_norm(gain, x.bfloat16(), 0.1).dtype == torch.bfloat16


def test_layer_norm_equals_its_formula():
    x, gain, bias = (
        random.normal(0, (2, 3, 4)) * 5 + 2,
        random.normal(1, (4,)),
        random.normal(2, (4,)),
    )
    centred = x - x.mean(-1, keepdim=True)
    want = centred / (centred.square().mean(-1, keepdim=True) + 0.1).sqrt() * gain
    assert torch.allclose(layer_norm(gain, None, x, 0.1), want, atol=1e-6)
    assert torch.allclose(layer_norm(gain, bias, x, 0.1), want + bias, atol=1e-6)
    assert layer_norm(gain, bias, x.bfloat16(), 0.1).dtype == torch.bfloat16


def test_affine_adds_a_bias_if_there_is_one():
    w, b, x = random.normal(0, (5, 3)), random.normal(1, (5,)), random.normal(2, (2, 4, 3))
    assert torch.equal(affine({"q": w}, "q", x), linear(w, x))
    assert torch.equal(affine({"q": w, "q_bias": b}, "q", x), linear(w, x) + b)
    assert affine({"q": w, "q_bias": b}, "q", x.bfloat16()).dtype == torch.bfloat16


def test_a_soft_cap_bounds_logits():
    w, x = random.normal(0, (5, 3)), 4 * random.normal(2, (2, 4, 3))
    assert torch.equal(logits(w, x), linear(w, x))
    assert torch.allclose(logits(w, x, softcap=2.0), 2 * torch.tanh(linear(w, x) / 2))
    assert torch.allclose(logits(w, x / 1000, softcap=2.0), linear(w, x / 1000), atol=1e-6)


def test_shapes_are_checked_in_tests():
    # Without conftest's import hook this would broadcast or fail later.
    with pytest.raises(Exception, match="Type-check error"):
        rms_norm(torch.ones(3), torch.ones(2, 3, 4), 0.1)
