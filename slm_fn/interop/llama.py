"""Export of models as Hugging Face's Llama, Mistral, Qwen2 or Qwen3: config and weight names.

Invariant: a model that is accepted computes the same logits there; a model that none of them can
hold is refused with the reason.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from slm_fn.core import tree
from slm_fn.core.types import Params
from slm_fn.nn.config import ModelConfig
from slm_fn.nn.positions import attention_factor

_HF_NAMES = {
    "attn_norm": "input_layernorm.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    "attn/q": "self_attn.q_proj",
    "attn/k": "self_attn.k_proj",
    "attn/v": "self_attn.v_proj",
    "attn/o": "self_attn.o_proj",
    "attn/q_norm": "self_attn.q_norm.weight",
    "attn/k_norm": "self_attn.k_norm.weight",
    "ffn/gate": "mlp.gate_proj",
    "ffn/up": "mlp.up_proj",
    "ffn/down": "mlp.down_proj",
}
"""transformers' name below a layer, by the path below `blocks`."""


def family(config: ModelConfig) -> str:
    """Returns which family holds this model.

    Returns:
        `qwen3` (QK-norm), `qwen2` (biases of q, k and v), `mistral` (a window) or `llama`.

    Raises:
        ValueError: none of them does; the message names what none has.

    Example:
        >>> family(ModelConfig(qk_norm=True)), family(ModelConfig(window=64))
        ('qwen3', 'mistral')
    """
    unsupported = _unsupported_features(config)
    if unsupported:
        raise ValueError(
            f"no Llama, Mistral, Qwen2 or Qwen3 has {', '.join(unsupported)}; "
            "this model cannot be exported as one of them"
        )
    if config.qk_norm:
        return "qwen3"
    if config.biases == "qkv":
        return "qwen2"
    return "mistral" if config.window else "llama"


def _unsupported_features(config: ModelConfig) -> list[str]:
    checks = {
        f"norm {config.norm}": config.norm != "rms",
        f"ffn {config.ffn}": config.ffn != "swiglu",
        f"positions {config.positions}": config.positions != "rope",
        "attn_softcap": config.attn_softcap > 0,
        "logit_softcap": config.logit_softcap > 0,
        f"qk_norm with biases {config.biases}": config.qk_norm and config.biases != "none",
        "a window with biases all": config.window > 0 and config.biases == "all",
    }
    return [feature for feature, is_present in checks.items() if is_present]


def to_hf_config(
    config: ModelConfig,
    bos: int | None = None,
    eos: int | None = None,
) -> dict[str, Any]:
    """Returns the `config.json` that transformers reads.

    Args:
        config: the model's own config.
        bos: the id of the token at the start of every document.
        eos: the id of the token that ends a reply.

    Raises:
        ValueError: transformers has no such model (see `family`).
    """
    model_family = family(config)
    theta, scaling = _rope_settings(config)
    hf_config = {
        "model_type": model_family,
        "architectures": [f"{model_family.capitalize()}ForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied,
        "attention_bias": config.biases == "all",
        "mlp_bias": config.biases == "all",
        "rope_theta": theta,
        "rope_scaling": scaling,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": "float32",
    }
    if model_family == "llama":
        return hf_config
    del hf_config["mlp_bias"]
    hf_config["sliding_window"] = config.window or None
    if model_family != "mistral":
        # In the layers of a Qwen below `max_window_layers` attention has no window.
        hf_config["use_sliding_window"] = config.window > 0
        hf_config["max_window_layers"] = 0
    return hf_config


def _rope_settings(config: ModelConfig) -> tuple[float, dict[str, Any] | None]:
    """Returns theta and transformers' `rope_scaling`. NTK scaling changes theta alone."""
    scaling = config.rope_scaling
    if scaling.kind == "none":
        return config.rope_theta, None
    if scaling.kind == "ntk":
        C = config.head_dim
        return config.rope_theta * scaling.factor ** (C / (C - 2)), None
    settings = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "linear":
        return config.rope_theta, settings
    original_context = scaling.original_context or round(config.context / scaling.factor)
    yarn_settings = {
        "original_max_position_embeddings": original_context,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "attention_factor": attention_factor(scaling),
    }
    return config.rope_theta, settings | yarn_settings


def to_hf_weights(config: ModelConfig, params: Params) -> dict[str, Tensor]:
    """Returns the parameters by transformers' names, one matrix per layer.

    Raises:
        ValueError: transformers has no such model (see `family`).
    """
    family(config)
    weights = {
        "model.embed_tokens.weight": params["embed"],
        "model.norm.weight": params["norm"],
    }
    for i, layer in enumerate(tree.unstack(params["blocks"])):
        for path, weight in tree.named_leaves(layer).items():
            weights[f"model.layers.{i}.{_hf_name(path)}"] = weight
    if not config.tied:
        weights["lm_head.weight"] = params["head"]
    return weights


def _hf_name(path: str) -> str:
    """Returns transformers' name of a parameter of a layer."""
    name = _HF_NAMES[path.removesuffix("_bias")]
    if name.endswith(".weight"):
        return name
    return f"{name}.bias" if path.endswith("_bias") else f"{name}.weight"
