"""Quantized weights: error bounds, products, independence of rows, and a full model."""

import msgspec
import pytest
import torch
import torch.nn.functional as F

from slm_fn.core import device, random, tree
from slm_fn.lift import quant
from slm_fn.lift.quant import QuantConfig
from slm_fn.nn import gpt, ops

KINDS = {"int8": quant.to_int8, "int4": lambda w: quant.to_int4(w, 32)}


def matrix(*shape, key=0):
    return random.normal(key, shape) * torch.linspace(0.1, 3, shape[-2])[:, None]


def test_int8_is_off_by_half_a_step_at_most():
    w = matrix(3, 64, 96)
    result = quant.to_int8(w)
    assert result.q.dtype == torch.int8
    assert result.scale.shape == (3, 64)
    assert ((quant.dequantize_leaf(result) - w).abs() <= result.scale[..., None] * 0.5001).all()
    assert (
        result.scale * 127 <= w.abs().amax(-1) * 1.01
    ).all()  # and no step is wider than it must be


def test_int4_is_off_by_half_a_step_at_most():
    w = matrix(3, 64, 96)
    result = quant.to_int4(w, 32)
    assert result.q.shape == (3, 64, 48)
    assert result.scale.shape == (3, 64, 3)
    slack = result.zero.abs() * 2**-8  # zero is a bfloat16 number
    bound = (result.scale * 0.5001 + slack).repeat_interleave(32, -1)
    assert ((quant.dequantize_leaf(result) - w).abs() <= bound).all()


@pytest.mark.parametrize("kind", KINDS)
def test_casting_to_bfloat16_keeps_what_was_stored(kind):
    result = KINDS[kind](matrix(32, 64))
    assert all(torch.equal(x, x.bfloat16().to(x.dtype)) for x in result if x.is_floating_point())


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_and_equal_numbers_stay(kind):
    for w in (torch.zeros(16, 64), torch.full((16, 64), 0.5)):
        torch.testing.assert_close(quant.dequantize_leaf(KINDS[kind](w)), w, atol=0, rtol=2**-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_product_is_that_of_the_dequantised_weight(kind, rows, dtype):
    leaf, x = KINDS[kind](matrix(48, 64)), random.normal(1, (2, rows, 64)).to(dtype)
    want = F.linear(x.double(), quant.dequantize_leaf(leaf).double())
    result = ops.linear(leaf, x)
    assert result.dtype == dtype
    assert result.shape == want.shape
    assert (result.double() - want).norm() <= want.norm() * (
        1e-6 if dtype == torch.float32 else 6e-3
    )


@pytest.mark.parametrize("inputs", [24, 40, 33])
def test_widths_that_the_kernel_would_read_beyond(inputs):
    leaf, x = quant.to_int8(matrix(16, inputs)), random.normal(1, (3, inputs)).bfloat16()
    want = F.linear(x.double(), quant.dequantize_leaf(leaf).double())
    assert (ops.linear(leaf, x).double() - want).norm() <= want.norm() * 6e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_see_how_many_stand_beside_it(dtype):
    leaf, x = (
        quant.to_int8(matrix(48, 64)),
        random.normal(1, (device.MAX_INT8_KERNEL_ROWS, 64)).to(dtype),
    )
    every = ops.linear(leaf, x)
    assert all(torch.equal(ops.linear(leaf, x[:n]), every[:n]) for n in range(1, len(x)))


def test_rows_of_the_embedding():
    leaf, tokens = quant.to_int8(matrix(16, 32)), torch.tensor([[3, 0], [15, 3]])
    torch.testing.assert_close(ops.embed(leaf, tokens), quant.dequantize_leaf(leaf)[tokens])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("changes", [{}, {"tied": False, "biases": "all"}, {"ffn": "dual"}])
def test_apply_over_quantised_is_apply_over_dequantised(
    config, rough, gap, same, purely, bits, changes
):
    config = gpt.check(msgspec.structs.replace(config, **changes))
    params = rough(config)
    small = purely(
        quant.quantize, params, QuantConfig(bits=bits), gpt.matrix_paths(config).__contains__
    )
    assert same(small["norm"], params["norm"])
    assert all(isinstance(small[name], quant.Quant) for name in ("embed", "head") if name in params)
    plain = quant.dequantize(small)
    assert {path: leaf.shape for path, leaf in tree.named_leaves(plain).items()} == {
        path: leaf.shape for path, leaf in tree.named_leaves(params).items()
    }
    tokens = torch.arange(12).view(2, 6) % config.vocab_size
    result, _ = purely(gpt.apply, config, small, tokens)
    want, _ = gpt.apply(config, plain, tokens)
    assert gap(result, want) < 1e-5
    # decoded token by token through a cache, which is where the kernels for few rows are
    cache = gpt.init_cache(config, small, 2)
    for i in range(6):
        step, cache = gpt.apply(config, small, tokens[:, i : i + 1], cache)
        assert gap(step[:, 0], want[:, i]) < 1e-5


def test_vmap_over_what_is_multiplied_and_over_members():
    leaf, x = quant.to_int8(matrix(3, 16, 32)), random.normal(1, (3, 5, 32))
    result = torch.vmap(lambda q, scale, x: ops.linear(quant.Quant(q, scale), x))(*leaf, x)
    torch.testing.assert_close(
        result,
        torch.stack([F.linear(a, b) for a, b in zip(x, quant.dequantize_leaf(leaf), strict=True)]),
    )


def test_what_is_multiplied_has_a_gradient():
    leaf, x = quant.to_int8(matrix(16, 32)), random.normal(1, (5, 32)).requires_grad_()
    (result,) = torch.autograd.grad(ops.linear(leaf, x).sum(), x)
    torch.testing.assert_close(result, quant.dequantize_leaf(leaf).sum(0).expand(5, -1))


@pytest.mark.parametrize("group", [32, 3, 1, 0, -2])
def test_groups_that_do_not_fit_are_told(group):
    with pytest.raises(ValueError, match=r"blocks/q.*48.*--group"):
        quant.quantize(
            {"blocks": {"q": torch.ones(2, 4, 48)}},
            QuantConfig(bits=4, group=group),
            lambda path: True,
        )
