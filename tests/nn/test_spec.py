"""Parameter specs: the parameters of every option, counts and FLOPs by hand."""

import msgspec
import pytest

from slm_fn.core import tree
from slm_fn.nn import spec
from slm_fn.nn.config import DualConfig, ModelConfig

BASE = ModelConfig(
    vocab_size=100, dim=8, num_layers=3, num_heads=2, num_kv_heads=1, ffn_dim=10, context=16
)
BLOCK = 8 * 8 + 4 * 8 + 4 * 8 + 8 * 8 + 3 * 8 * 10


def paths(**change):
    specs = {}
    tree.map_with_path(
        spec.param_specs(msgspec.structs.replace(BASE, **change)),
        lambda path, w: specs.update({path: w}),
    )
    return specs


@pytest.mark.parametrize(
    ("change", "more", "less"),
    [
        ({"tied": False}, {"head"}, set()),
        ({"qk_norm": True}, {"blocks/attn/q_norm", "blocks/attn/k_norm"}, set()),
        ({"positions": "learned"}, {"positions"}, set()),
        ({"positions": "alibi"}, set(), set()),
        ({"ffn": "geglu"}, set(), set()),
        ({"ffn": "gelu"}, set(), {"blocks/ffn/gate"}),
        ({"ffn": "relu2"}, set(), {"blocks/ffn/gate"}),
        ({"norm": "layer"}, set(), set()),
        ({"biases": "qkv", "norm": "layer"}, {f"blocks/attn/{name}_bias" for name in "qkv"}, set()),
        (
            {"biases": "all"},
            {f"blocks/attn/{n}_bias" for n in "qkvo"}
            | {f"blocks/ffn/{n}_bias" for n in ("gate", "up", "down")},
            set(),
        ),
        (
            {"ffn": "dual"},
            {f"blocks/ffn/{p}/{n}" for p in ("lite", "expert") for n in ("gate", "up", "down")}
            | {"blocks/ffn/router"},
            {f"blocks/ffn/{name}" for name in ("gate", "up", "down")},
        ),
    ],
    ids=str,
)
def test_an_option_brings_its_own_parameters(change, more, less):
    plain, found = set(paths()), set(paths(**change))
    assert found - plain == more
    assert plain - found == less


def test_layer_norm_has_a_bias_if_all_layers_have():
    found = paths(norm="layer", biases="all")
    assert {"norm_bias", "blocks/attn_norm_bias", "blocks/ffn_norm_bias"} <= set(found)
    assert found["norm_bias"].shape == (8,)
    assert all(
        w.init_std == 0.0 and not w.is_matrix for path, w in found.items() if path.endswith("_bias")
    )


def test_residual_outputs_start_at_zero_and_learned_positions_are_small():
    for change in ({}, {"ffn": "gelu"}, {"ffn": "dual", "biases": "all"}):
        for path, w in paths(**change).items():
            assert (w.init_std == 0.0) == path.endswith(("/o", "/down", "_bias")), path
    for tied in (True, False):
        found = paths(positions="learned", tied=tied)
        assert found["positions"].init_std == found["embed"].init_std / 4


def test_count_and_flops_by_hand():
    untied = msgspec.structs.replace(BASE, tied=False)
    assert spec.count_params(untied) == 3 * (BLOCK + 2 * 8) + 2 * 100 * 8 + 8
    assert (
        spec.train_flops_per_token(untied, 16) == 6 * (3 * BLOCK + 100 * 8) + 12 * 3 * 8 * 16 // 2
    )
    # Norms, biases and positions are in no matrix product.
    dressed = msgspec.structs.replace(untied, norm="layer", biases="all", positions="learned")
    assert spec.train_flops_per_token(dressed, 16) == spec.train_flops_per_token(untied, 16)
    assert (
        spec.count_params(dressed)
        == spec.count_params(untied) + 3 * (8 + 4 + 4 + 8 + 10 + 10 + 8 + 8 + 8) + 8 + 16 * 8
    )


def test_a_window_counts_the_attended_keys():
    for window in (1, 4, 16):
        shown = sum(min(t + 1, window) for t in range(1600)) / 1600
        config = msgspec.structs.replace(BASE, window=window, context=1600)
        attend = spec.train_flops_per_token(config, 1600) - 6 * (3 * BLOCK + 100 * 8)
        assert attend == pytest.approx(12 * 3 * 8 * shown, rel=0.5 / window + 0.01)
    assert spec.train_flops_per_token(
        msgspec.structs.replace(BASE, window=16), 16
    ) == spec.train_flops_per_token(BASE, 16)


def test_a_dual_layer_counts_what_is_computed():
    lite, expert, router = 3 * 8 * 5, 3 * 8 * 10, 2 * 8
    attention, rest = BLOCK - expert, 6 * 100 * 8 + 6 * 3 * 8 * 16
    both = msgspec.structs.replace(BASE, ffn="dual")
    assert spec.train_flops_per_token(both, 16) == 18 * (attention + lite + expert + router) + rest
    drop = msgspec.structs.replace(
        both, dual=DualConfig(drop=True, capacity_factor=1.0, expert_share=0.25)
    )
    assert (
        spec.train_flops_per_token(drop, 16)
        == 18 * (attention + lite + expert // 4 + router) + rest
    )
    assert spec.count_params(both) == spec.count_params(BASE) + 3 * (lite + router)


def test_no_bias_norm_router_or_position_is_a_matrix():
    config = msgspec.structs.replace(
        BASE, ffn="dual", biases="all", norm="layer", positions="learned", tied=False
    )
    found = spec.matrix_paths(config)
    assert len(found) == 4 + 6
    assert not any(
        path.endswith(("_bias", "norm", "router", "positions", "embed", "head")) for path in found
    )
