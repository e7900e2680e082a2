"""infer/native_step.py: the eager logits for every option; rows, keys and threads change no bit."""

from ctypes import byref

import msgspec
import pytest
import torch

from slm_fn.core import random, tree
from slm_fn.infer import decoder as decoders
from slm_fn.infer import native_step
from slm_fn.lift import quant
from slm_fn.lift.quant import QuantConfig
from slm_fn.nn import cache, gpt

SHAPES = {
    "rope, qk_norm, swiglu": {},
    "untied, no qk_norm": {
        "tied": False,
        "qk_norm": False,
        "rope_scaling": gpt.RopeScaling("yarn", 2.0),
    },
    "layer norm, biases, gelu, learned": {
        "norm": "layer",
        "biases": "all",
        "ffn": "gelu",
        "positions": "learned",
    },
    "alibi, geglu, window": {"positions": "alibi", "ffn": "geglu", "window": 5, "biases": "qkv"},
    "caps, relu2, wide heads": {
        "attn_softcap": 2.0,
        "logit_softcap": 3.0,
        "ffn": "relu2",
        "num_heads": 2,
        "dim": 64,
    },
}


def kinds(config, params):
    where = gpt.matrix_paths(config).__contains__
    return {
        "float32": params,
        "bfloat16": tree.cast(params, torch.bfloat16),
        "int8": quant.quantize(params, QuantConfig(bits=8), where),
        "int4": quant.quantize(params, QuantConfig(bits=4), where),
        "int8 bfloat16": tree.cast(
            quant.quantize(params, QuantConfig(bits=8), where), torch.bfloat16
        ),
    }


def filled(config, params, rows, size):
    """A cache with random numbers at every position: reading beyond a length would show."""
    like = gpt.init_cache(config, params, rows, size)
    k, v = (random.normal(key, like.k.shape).to(like.k.dtype) for key in (1, 2))
    return cache.InPlaceKVCache(k, v, torch.arange(rows) * 3 % 11)


@pytest.mark.parametrize("shape", SHAPES)
def test_gives_what_apply_gives(config, rough, gap, shape):
    config = gpt.check(msgspec.structs.replace(config, **SHAPES[shape]))
    tokens = torch.tensor([[3], [60], [7], [9], [11]])
    for name, params in kinds(config, rough(config)).items():
        apply = decoders.select(config, params, "native").apply
        ours, theirs = (filled(config, params, 5, 16) for _ in range(2))
        bound = 0.03 if "bfloat16" in name else 1e-5
        for _ in range(3):
            logits, ours = apply(params, tokens, ours)
            expected, theirs = gpt.apply(config, params, tokens, theirs)
            assert gap(logits, expected.float()) < bound, name
            assert gap(tree.cast(ours, torch.float32), tree.cast(theirs, torch.float32)) < bound, (
                name
            )


@pytest.mark.parametrize("group", [32, 64, 128])
def test_both_halves_of_wide_groups_are_read(config, rough, gap, group):
    config = gpt.check(msgspec.structs.replace(config, dim=128, ffn_dim=128))
    few = quant.quantize(
        rough(config), QuantConfig(bits=4, group=group), gpt.matrix_paths(config).__contains__
    )
    params, tokens = tree.cast(few, torch.bfloat16), torch.arange(11)[:, None]
    logits, _ = decoders.select(config, params, "native").apply(
        params, tokens, filled(config, params, 11, 32)
    )
    expected, _ = gpt.apply(config, params, tokens, filled(config, params, 11, 32))
    assert gap(logits, expected.float()) < 0.03


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "int4"])
def test_a_row_is_its_own_bit_for_bit(config, rough, kind):
    params = kinds(config, rough(config))[kind]
    apply = decoders.select(config, params, "native").apply
    tokens = torch.arange(13)[:, None]
    every, _ = apply(params, tokens, filled(config, params, 13, 32))
    for rows in range(1, 13):
        for size in (16, 32):
            # Beyond their lengths the rows hold other numbers in another cache.
            some, _ = apply(
                params, tokens[:rows], cache.view(filled(config, params, 13, 32), rows, size)
            )
            assert torch.equal(some, every[:rows])
    for row in range(13):
        alone = filled(config, params, 13, 32)
        one = cache.InPlaceKVCache(
            alone.k[:, row : row + 1], alone.v[:, row : row + 1], alone.length[row : row + 1]
        )
        assert torch.equal(apply(params, tokens[row : row + 1], one)[0][0], every[row])
    torch.set_num_threads(2)
    try:
        assert torch.equal(apply(params, tokens, filled(config, params, 13, 32))[0], every)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num", [2, 5, 15])
def test_tokens_read_together_are_as_one_by_one_bit_for_bit(config, rough, same, shape, num):
    config = gpt.check(msgspec.structs.replace(config, **SHAPES[shape]))
    tokens = (torch.arange(3 * num) * 7 % 64).reshape(3, num)
    for name, params in kinds(config, rough(config)).items():
        apply = decoders.select(config, params, "native").apply
        ours, slots = filled(config, params, 3, 32), filled(config, params, 3, 32)
        together, ours = apply(params, tokens, ours)
        for i in range(num):
            one, slots = apply(params, tokens[:, i : i + 1], slots)
            assert torch.equal(together[:, i : i + 1], one), name
        assert same(tree.cast(ours, torch.float32), tree.cast(slots, torch.float32)), name


def test_the_callers_head_receives_the_hidden_states(config, rough, gap):
    params = rough(config)
    slots = filled(config, params, 2, 16)
    expected, _ = gpt.apply(
        config, params, torch.tensor([[1], [2]]), tree.map(torch.clone, slots), head=lambda w, x: x
    )
    logits, _ = decoders.select(config, params).apply(
        params, torch.tensor([[1], [2]]), slots, head=lambda w, x: x
    )
    assert gap(logits, expected) < 1e-5


def test_everything_else_is_eager(config, rough, same):
    params = rough(config)
    decoder, tokens = decoders.select(config, params), torch.arange(6)[None]
    assert same(decoder.apply(params, tokens)[0], gpt.apply(config, params, tokens)[0])
    empty = gpt.init_cache(config, params, 1)
    assert same(
        decoder.apply(params, tokens[:, :1], empty), gpt.apply(config, params, tokens[:, :1], empty)
    )
    other = rough(config, key=1)
    slots = filled(config, params, 1, 16)
    expected = gpt.apply(config, other, tokens[:, :1], tree.map(torch.clone, slots))
    assert same(decoder.apply(other, tokens[:, :1], slots)[0], expected[0])


def test_a_cache_of_another_dtype_is_eager(config, rough, same):
    params, tokens = rough(config), torch.tensor([[1]])
    slots = tree.cast(filled(config, params, 1, 16), torch.bfloat16)
    expected, _ = gpt.apply(config, params, tokens, tree.map(torch.clone, slots))
    assert same(decoders.select(config, params, "native").apply(params, tokens, slots)[0], expected)


def test_a_full_slot_is_rejected_and_nothing_written(config, rough, same):
    params = rough(config)
    slots = filled(config, params, 2, 16)._replace(length=torch.tensor([3, 16]))
    room_for_two = filled(config, params, 1, 16)._replace(length=torch.tensor([14]))
    before = tree.map(torch.clone, slots)
    with pytest.raises(ValueError, match="no room"):
        decoders.select(config, params, "native").apply(params, torch.tensor([[1], [2]]), slots)
    with pytest.raises(ValueError, match="no room for 3 more tokens"):
        decoders.select(config, params, "native").apply(
            params, torch.ones(1, 3, dtype=torch.long), room_for_two
        )
    assert same(slots, before)


@pytest.mark.parametrize(
    ("rows", "changes", "error"),
    [
        (2, {"length": torch.zeros(3, dtype=torch.long)}, "2 rows of tokens, 3 lengths"),
        (3, {"length": torch.zeros(1, dtype=torch.long)}, "3 rows of tokens, 1 lengths"),
        (3, {"length": torch.zeros(3, dtype=torch.long)}, "3 lengths, 2 slots"),
        (2, {"length": torch.tensor([0, -1])}, "no room"),
        (2, {"v": torch.zeros(2, 2, 16, 2, 8, dtype=torch.bfloat16)}, "the same layout"),
        (2, {"v": torch.zeros(2, 2, 15, 2, 8)}, "the same layout"),
        (2, {"k": torch.zeros(2, 2, 16, 8, 2).mT}, "the same layout"),
        (2, {"k": torch.zeros(1, 2, 16, 2, 8)}, "another model"),
        (2, {"k": torch.zeros(2, 2, 16, 4, 8)}, "another model"),
    ],
)
def test_a_cache_that_would_be_read_beyond_its_end_is_rejected(config, rough, rows, changes, error):
    params = rough(config)
    slots = filled(config, params, 2, 16)._replace(**changes)
    with pytest.raises(ValueError, match=error):
        decoders.select(config, params, "native").apply(
            params, torch.ones(rows, 1, dtype=torch.long), slots
        )


def test_no_memory_is_an_error_that_does_not_end_the_program(config, rough):
    params = rough(config)
    decoders.select(config, params, "native")
    step = native_step.load()
    far = torch.tensor([2**58])
    call = native_step._Call(rows=1, rows_per_sequence=1, threads=1, lengths=far.data_ptr())
    assert step(byref(native_step.describe_model(config, params)[0]), byref(call)) == 1
