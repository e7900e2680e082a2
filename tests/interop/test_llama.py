"""interop/llama.py: transformers computes our logits from an export; the rest is refused."""

import json

import msgspec
import pytest
import torch

from slm_fn.interop import llama
from slm_fn.nn import gpt

transformers = pytest.importorskip("transformers")

BASE = gpt.ModelConfig(
    vocab_size=64, dim=32, num_layers=2, num_heads=4, num_kv_heads=2, ffn_dim=48, context=48
)
YARN = gpt.RopeScaling("yarn", 4.0, beta_fast=4.0)
KINDS = {
    "llama": ({}, "llama"),
    "llama-untied-mqa": ({"tied": False, "num_kv_heads": 1, "rope_theta": 500.0}, "llama"),
    "llama-biases": ({"biases": "all"}, "llama"),
    "llama-linear": ({"rope_scaling": gpt.RopeScaling("linear", 3.0)}, "llama"),
    "llama-ntk": ({"rope_scaling": gpt.RopeScaling("ntk", 3.0)}, "llama"),
    "llama-yarn": ({"rope_scaling": YARN}, "llama"),
    "mistral": ({"window": 7}, "mistral"),
    "qwen2": ({"biases": "qkv"}, "qwen2"),
    "qwen2-window-yarn": ({"biases": "qkv", "window": 5, "rope_scaling": YARN}, "qwen2"),
    "qwen3": ({"qk_norm": True}, "qwen3"),
    "qwen3-window": ({"qk_norm": True, "window": 6, "tied": False}, "qwen3"),
    "dropout-is-for-training": ({"dropout": 0.5}, "llama"),
}


@pytest.mark.parametrize("name", KINDS)
def test_transformers_computes_the_same_logits(name, rough, batch, tmp_path):
    change, kind = KINDS[name]
    config = msgspec.structs.replace(BASE, **change)
    params, tokens = rough(config), batch(config, rows=2, length=39).tokens
    (tmp_path / "config.json").write_text(json.dumps(llama.to_hf_config(config, bos=1, eos=2)))
    hf_config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert hf_config.model_type == kind
    peer = transformers.AutoModelForCausalLM.from_config(
        hf_config, attn_implementation="eager"
    ).eval()
    names = llama.to_hf_weights(config, params)
    missing, unexpected = peer.load_state_dict(names, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if config.tied else set())
    with torch.no_grad():
        want = peer(tokens).logits
    got = gpt.apply(config, params, tokens)[0]
    assert (got - want).abs().max() < 1e-4
    assert got.std() > 0.1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm": "layer"}, "norm layer"),
        ({"ffn": "gelu"}, "ffn gelu"),
        ({"ffn": "dual"}, "ffn dual"),
        ({"positions": "alibi"}, "positions alibi"),
        ({"attn_softcap": 5.0, "logit_softcap": 5.0}, "attn_softcap, logit_softcap"),
        ({"qk_norm": True, "biases": "qkv"}, "qk_norm with biases qkv"),
        ({"window": 4, "biases": "all"}, "a window with biases all"),
    ],
    ids=str,
)
def test_what_transformers_has_no_model_for_is_refused(change, words):
    config = msgspec.structs.replace(BASE, **change)
    for use in (llama.to_hf_config, lambda c: llama.to_hf_weights(c, gpt.init(c, 0))):
        with pytest.raises(ValueError, match=f"has {words}; this model cannot be exported"):
            use(config)
