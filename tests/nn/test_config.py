"""ModelConfig: options that do not fit together are refused with the reason; old files load."""

import msgspec
import pytest

from slm_fn.nn.config import DualConfig, ModelConfig, RopeScaling, check, needs_dropout_seeds

GOOD = ModelConfig(vocab_size=64, dim=64, num_heads=8, num_kv_heads=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": -1}, "window must be positive, or 0 for none, got -1"),
        (
            {"window": 257},
            r"model.window \(257\) is longer than model.context \(256\); 0 attends",
        ),
        ({"attn_softcap": -0.5}, "attn_softcap must be positive"),
        ({"logit_softcap": float("inf")}, "logit_softcap must be positive"),
        ({"rope_theta": 0.0}, "rope_theta must be positive"),
        ({"norm_eps": -1.0}, "norm_eps must be positive"),
        (
            {"dropout": 1.0},
            "dropout is the fraction of activations to drop: at least 0 and below 1",
        ),
        ({"dropout": -0.1}, "dropout"),
        ({"dim": 40}, "must be an even integer"),
        ({"dim": 42, "positions": "none"}, "must be an integer"),
        (
            {"rope_scaling": RopeScaling(factor=2.0)},
            "settings but no kind; set model.rope_scaling.kind",
        ),
        (
            {"rope_scaling": RopeScaling("linear", 2.0), "positions": "alibi"},
            "needs model.positions rope, but model.positions is alibi",
        ),
        (
            {"rope_scaling": RopeScaling("linear", 0.5)},
            "ratio of the new context to the original one: above 1, got 0.5",
        ),
        ({"rope_scaling": RopeScaling("yarn")}, "above 1, got 1"),
        ({"rope_scaling": RopeScaling("linear", 2.0, -1)}, "original_context must be positive"),
        (
            {"rope_scaling": RopeScaling("yarn", 2.0, 100)},
            r"context \(256\) is longer than .* \* factor \(2\); raise",
        ),
        (
            {"rope_scaling": RopeScaling("ntk", 2.0), "dim": 16},
            "heads of at least 4 channels, got 2",
        ),
        (
            {"rope_scaling": RopeScaling("yarn", 2.0, beta_fast=0.5)},
            r"beta_slow \(1\) must be between",
        ),
        (
            {"rope_scaling": RopeScaling("yarn", 2.0, attention_factor=-1.0)},
            "attention_factor must be positive",
        ),
        ({"dual": DualConfig(drop=True)}, "model.ffn is swiglu; set model.ffn to dual"),
        ({"ffn": "dual", "dual": DualConfig(temperature=0.0)}, "temperature must be positive"),
        ({"ffn": "dual", "dual": DualConfig(small_ratio=0.0)}, "small_ratio must be positive"),
        (
            {"ffn": "dual", "dual": DualConfig(capacity_factor=-1.0)},
            "capacity_factor must be positive",
        ),
        (
            {"ffn": "dual", "dual": DualConfig(expert_share=1.0)},
            "expert_share must be between 0 and 1",
        ),
        ({"ffn": "dual", "dual": DualConfig(balance=-1.0)}, "balance must not be negative"),
    ],
    ids=str,
)
def test_an_invalid_config_is_refused_with_the_reason(change, message):
    assert check(GOOD) is GOOD
    with pytest.raises(ValueError, match=message):
        check(msgspec.structs.replace(GOOD, **change))


@pytest.mark.parametrize("field", ["norm", "ffn", "positions", "biases"])
def test_an_unknown_option_is_refused_when_the_config_is_read(field):
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.convert({field: "best"}, ModelConfig)


def test_a_config_of_an_older_version_loads_and_means_the_same():
    old = (
        '{"vocab_size":512,"dim":64,"num_layers":2,"num_heads":4,"num_kv_heads":2,"ffn_dim":96,'
        '"context":32,"rope_theta":10000.0,"qk_norm":true,"tied":false,"norm_eps":1e-5}'
    )
    config = msgspec.json.decode(old, type=ModelConfig)
    assert (config.norm, config.ffn, config.positions, config.biases) == (
        "rms",
        "swiglu",
        "rope",
        "none",
    )
    assert (config.window, config.dropout, config.attn_softcap, config.logit_softcap) == (
        0,
        0.0,
        0.0,
        0.0,
    )
    assert not needs_dropout_seeds(config)
    assert msgspec.json.decode(msgspec.json.encode(config), type=ModelConfig) == config


def test_configs_that_drop_in_training_need_seeds():
    replace = msgspec.structs.replace
    assert needs_dropout_seeds(replace(GOOD, dropout=0.1))
    assert not needs_dropout_seeds(replace(GOOD, ffn="dual"))
    assert needs_dropout_seeds(replace(GOOD, ffn="dual", dual=DualConfig(drop=True)))


def test_capacity_rounds_up_and_is_at_most_the_length():
    assert DualConfig(capacity_factor=1.25, expert_share=0.5).capacity(256) == 160
    assert DualConfig(capacity_factor=1.0, expert_share=0.3).capacity(7) == 3
    assert DualConfig(capacity_factor=9.0).capacity(10) == 10
    assert DualConfig(capacity_factor=0.01).capacity(3) == 1
