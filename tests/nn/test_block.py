"""One layer by hand: what it adds to the stream, and what queries, keys and values are."""

import msgspec
import torch

from slm_fn.core import random, tree
from slm_fn.nn import attention, block, ops


def first_layer(params):
    return tree.map(lambda w: w[0], params["blocks"])


def inputs_for(config, T):
    mask = attention.causal_mask(torch.arange(T)[None], T)
    return block.PositionInputs(None, attention.mask_to_bias(mask, torch.float32))


def test_a_layer_adds_what_its_taps_see(config, rough):
    shape = msgspec.structs.replace(config, positions="none")
    options = block.BlockOptions(shape, "plain", lambda buffer, new, positions: new)
    params, x = first_layer(rough(shape)), random.normal(1, (2, 5, config.dim))
    added = {}

    def tap(name, activation):
        added[name] = activation
        return activation

    out, (k, v), route = block.apply(options, params, x, inputs_for(shape, 5), None, None, tap)
    assert torch.equal(out, x + added["attn"] + added["ffn"])
    assert list(added) == ["attn", "ffn"]
    assert route is None
    assert k.shape == v.shape == (2, 5, config.num_kv_heads, config.head_dim)
    still = block.apply(
        options,
        params,
        x,
        inputs_for(shape, 5),
        None,
        None,
        lambda name, activation: torch.zeros_like(activation),
    )[0]
    assert torch.equal(still, x)


def test_heads_are_contiguous_channels_of_the_projection(config, rough):
    params, x = first_layer(rough(config))["attn"], random.normal(1, (2, 3, config.dim))
    shape = msgspec.structs.replace(config, qk_norm=False)
    q, k, _ = block.project_qkv(shape, params, x, None)
    C = config.head_dim
    for heads, name in ((q, "q"), (k, "k")):
        flat = ops.linear(params[name], x)
        for h in range(heads.shape[2]):
            assert torch.equal(heads[:, :, h], flat[..., h * C : (h + 1) * C])


def test_normed_queries_have_unit_mean_square(config):
    shape = msgspec.structs.replace(config, qk_norm=True)
    params = {
        "q": random.normal(1, (config.dim, config.dim)),
        "k": random.normal(2, (config.num_kv_heads * config.head_dim, config.dim)),
        "v": random.normal(3, (config.num_kv_heads * config.head_dim, config.dim)),
        "q_norm": torch.ones(config.head_dim),
        "k_norm": torch.ones(config.head_dim),
    }
    q, k, v = block.project_qkv(shape, params, random.normal(4, (2, 3, config.dim)), None)
    for heads in (q, k):
        assert torch.allclose(heads.square().mean(-1), torch.ones(heads.shape[:3]), atol=1e-3)
    assert (v.square().mean(-1) - 1).abs().max() > 0.1
