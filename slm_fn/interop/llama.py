"""Models as Hugging Face's Llama, Mistral, Qwen2 or Qwen3: the config and the names of the weights, or why not.

Invariant: what is not refused computes the same logits there; nothing is left out in silence.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from slm_fn.core import tree
from slm_fn.core.types import Params
from slm_fn.nn.config import ModelConfig
from slm_fn.nn.positions import attention_factor

_NAMES = {
    "attn_norm": "input_layernorm.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    **{f"attn/{name}": f"self_attn.{name}_proj" for name in "qkvo"},
    **{f"attn/{name}_norm": f"self_attn.{name}_norm.weight" for name in "qk"},
    **{f"ffn/{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}


def family(config: ModelConfig) -> str:
    """Which of the four holds this model: `llama`, `mistral` (a window), `qwen2` (biases of qkv), `qwen3` (QK-norm).

    Raises:
        ValueError: none of them; names what none has.

    Example:
        >>> family(ModelConfig(qk_norm=True)), family(ModelConfig(window=64))
        ('qwen3', 'mistral')
    """
    foreign = {
        f"norm {config.norm}": config.norm != "rms",
        f"ffn {config.ffn}": config.ffn != "swiglu",
        f"positions {config.positions}": config.positions != "rope",
        "attn_softcap": config.attn_softcap > 0,
        "logit_softcap": config.logit_softcap > 0,
        f"qk_norm with biases {config.biases}": config.qk_norm and config.biases != "none",
        "a window with biases all": config.window > 0 and config.biases == "all",
    }
    found = [what for what, is_there in foreign.items() if is_there]
    if found:
        raise ValueError(
            f"no Llama, Mistral, Qwen2 or Qwen3 has {', '.join(found)}; this model cannot be exported as one of them"
        )
    if config.qk_norm:
        return "qwen3"
    if config.biases == "qkv":
        return "qwen2"
    return "mistral" if config.window else "llama"


def describe(config: ModelConfig, bos: int | None = None, eos: int | None = None) -> dict[str, Any]:
    """The `config.json` that transformers reads.

    Raises:
        ValueError: transformers has no such model (see `family`).
    """
    kind = family(config)
    theta, scaling = _rope(config)
    told = {
        "model_type": kind,
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
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
    if kind == "llama":
        return told
    del told["mlp_bias"]
    window = {"sliding_window": config.window or None}
    if kind == "mistral":
        return told | window
    # In their layers below `max_window_layers` the Qwens see everything.
    return told | window | {"use_sliding_window": config.window > 0, "max_window_layers": 0}


def _rope(config: ModelConfig) -> tuple[float, dict[str, Any] | None]:
    """Theta and the scaling in transformers' words. NTK is another theta and nothing else."""
    scaling, C = config.rope_scaling, config.head_dim
    if scaling.kind == "none":
        return config.rope_theta, None
    if scaling.kind == "ntk":
        return config.rope_theta * scaling.factor ** (C / (C - 2)), None
    told = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "linear":
        return config.rope_theta, told
    return config.rope_theta, told | {
        "original_max_position_embeddings": scaling.original_context or round(config.context / scaling.factor),
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "attention_factor": attention_factor(scaling),
    }


def rename(config: ModelConfig, params: Params) -> dict[str, Tensor]:
    """The parameters by transformers' names, a layer's matrices apart.

    Raises:
        ValueError: transformers has no such model (see `family`).
    """
    family(config)
    out = {"model.embed_tokens.weight": params["embed"], "model.norm.weight": params["norm"]}
    for i, layer in enumerate(tree.unstack(params["blocks"])):
        for path, w in tree.paths(layer).items():
            stem, bias = path.removesuffix("_bias"), path.endswith("_bias")
            name = _NAMES[stem]
            ending = "" if name.endswith(".weight") else ".bias" if bias else ".weight"
            out[f"model.layers.{i}.{name}{ending}"] = w
    return out if config.tied else {**out, "lm_head.weight": params["head"]}
