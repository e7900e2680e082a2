"""Weights laid out for inference: the same results, and rows that do not see each other."""

import msgspec
import pytest
import torch

from slm_fn.core import random, tree
from slm_fn.lift import layout, quant
from slm_fn.lift.quant import QuantConfig
from slm_fn.nn import cache, gpt, ops

SHAPES = {
    "plain": {},
    "untied": {"tied": False},
    "biases": {"biases": "all", "norm": "layer"},
    "gelu": {"ffn": "gelu"},
    "geglu": {"ffn": "geglu", "logit_softcap": 5.0},
    "dual": {"ffn": "dual"},
}


def kinds(config, params):
    where = gpt.matrices(config).__contains__
    return {
        "float32": params,
        "bfloat16": tree.cast(params, torch.bfloat16),
        "int8": quant.quantize(params, QuantConfig(bits=8), where),
        "int4": quant.quantize(params, QuantConfig(bits=4), where),
        "int4 bfloat16": tree.cast(quant.quantize(params, QuantConfig(bits=4), where), torch.bfloat16),
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_apply_gives_the_same(config, rough, gap, shape):
    config = gpt.check(msgspec.structs.replace(config, **SHAPES[shape]))
    tokens = torch.arange(12).view(2, 6)
    for name, params in kinds(config, rough(config)).items():
        want, _ = gpt.apply(config, params, tokens)
        found, _ = gpt.apply(config, layout.lay_out(params), tokens)
        assert gap(found.float(), want.float()) < (0.02 if "bfloat16" in name else 1e-5), name


def test_given_params_stay(config, rough, purely, same):
    params = rough(config)
    before = tree.map(torch.clone, params)
    purely(layout.lay_out, params)
    assert same(params, before)


def test_decoding_into_slots_equals_reading_at_once(config, rough, gap):
    params = layout.lay_out(rough(config))
    tokens = torch.arange(12).view(2, 6)
    want, _ = gpt.apply(config, params, tokens)
    slots = cache.Slots(*gpt.init_cache(config, params, 3, 16))
    part = cache.view(slots, 2, 8)
    for i in range(6):
        found, part = gpt.apply(config, params, tokens[:, i : i + 1], part)
        assert gap(found[:, 0], want[:, i]) < 1e-5


@pytest.mark.parametrize("kind", ["bfloat16", "int4 bfloat16"])
def test_a_row_does_not_see_how_many_stand_beside_it(config, rough, kind):
    leaf = layout.lay_out(kinds(config, rough(config))[kind])["blocks"][0]["attn"]["qkv"]
    x = random.normal(0, (16, 32)).bfloat16()
    every = ops.linear(leaf, x)
    assert all(torch.equal(ops.linear(leaf, x[:n]), every[:n]) for n in range(1, 16))
