"""What a config may say: options that make no sense are refused with the reason, old files still load."""

import msgspec
import pytest

from slm_fn.nn.config import DualConfig, ModelConfig, RopeScaling, check, is_noisy

GOOD = ModelConfig(vocab_size=64, dim=64, num_heads=8, num_kv_heads=2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window": -1}, "window must be positive, or 0 for none, got -1"),
        ({"window": 257}, r"model.window \(257\) is longer than model.context \(256\); 0 sees"),
        ({"attn_softcap": -0.5}, "attn_softcap must be positive"),
        ({"logit_softcap": float("inf")}, "logit_softcap must be positive"),
        ({"rope_theta": 0.0}, "rope_theta must be positive"),
        ({"norm_eps": -1.0}, "norm_eps must be positive"),
        ({"dropout": 1.0}, "dropout is the share that is dropped: at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout"),
        ({"dim": 40}, "whole, even number"),
        ({"dim": 42, "positions": "none"}, "must be a whole number"),
        ({"rope_scaling": RopeScaling(factor=2.0)}, "settings but no kind; set model.rope_scaling.kind"),
        ({"rope_scaling": RopeScaling("linear", 2.0), "positions": "alibi"}, "positions rope, which are alibi here"),
        ({"rope_scaling": RopeScaling("linear", 0.5)}, "how many times the context is stretched: above 1, got 0.5"),
        ({"rope_scaling": RopeScaling("yarn")}, "above 1, got 1"),
        ({"rope_scaling": RopeScaling("linear", 2.0, -1)}, "original_context must be positive"),
        ({"rope_scaling": RopeScaling("yarn", 2.0, 100)}, r"context \(256\) is beyond .* \* factor \(2\); raise"),
        ({"rope_scaling": RopeScaling("ntk", 2.0), "dim": 16}, "heads of at least 4 channels, here are 2"),
        ({"rope_scaling": RopeScaling("yarn", 2.0, beta_fast=0.5)}, r"beta_slow \(1\) must lie between"),
        ({"rope_scaling": RopeScaling("yarn", 2.0, attention_factor=-1.0)}, "attention_factor must be positive"),
        ({"dual": DualConfig(drop=True)}, "model.ffn is swiglu; set model.ffn to dual"),
        ({"ffn": "dual", "dual": DualConfig(temperature=0.0)}, "temperature must be positive"),
        ({"ffn": "dual", "dual": DualConfig(small_ratio=0.0)}, "small_ratio must be positive"),
        ({"ffn": "dual", "dual": DualConfig(capacity_factor=-1.0)}, "capacity_factor must be positive"),
        ({"ffn": "dual", "dual": DualConfig(expert_share=1.0)}, "expert_share must lie between 0 and 1"),
        ({"ffn": "dual", "dual": DualConfig(balance=-1.0)}, "balance must not be negative"),
    ],
    ids=str,
)  # fmt: skip
def test_what_makes_no_sense_says_why(change, words):
    assert check(GOOD) is GOOD
    with pytest.raises(ValueError, match=words):
        check(msgspec.structs.replace(GOOD, **change))


@pytest.mark.parametrize("field", ["norm", "ffn", "positions", "biases"])
def test_an_option_that_is_not_there_is_refused_when_it_is_read(field):
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.convert({field: "best"}, ModelConfig)


def test_a_config_of_an_older_version_loads_and_means_the_same():
    old = (
        '{"vocab_size":512,"dim":64,"num_layers":2,"num_heads":4,"num_kv_heads":2,"ffn_dim":96,"context":32,'
        '"rope_theta":10000.0,"qk_norm":true,"tied":false,"norm_eps":1e-5}'
    )
    config = msgspec.json.decode(old, type=ModelConfig)
    assert (config.norm, config.ffn, config.positions, config.biases) == ("rms", "swiglu", "rope", "none")
    assert (config.window, config.dropout, config.attn_softcap, config.logit_softcap) == (0, 0.0, 0.0, 0.0)
    assert not is_noisy(config)
    assert msgspec.json.decode(msgspec.json.encode(config), type=ModelConfig) == config


def test_who_drops_in_training_is_noisy():
    replace = msgspec.structs.replace
    assert is_noisy(replace(GOOD, dropout=0.1))
    assert not is_noisy(replace(GOOD, ffn="dual"))
    assert is_noisy(replace(GOOD, ffn="dual", dual=DualConfig(drop=True)))


def test_capacity_rounds_up_and_is_no_more_than_the_row():
    assert DualConfig(capacity_factor=1.25, expert_share=0.5).capacity(256) == 160
    assert DualConfig(capacity_factor=1.0, expert_share=0.3).capacity(7) == 3
    assert DualConfig(capacity_factor=9.0).capacity(10) == 10
    assert DualConfig(capacity_factor=0.01).capacity(3) == 1
