"""ModelConfig: the shape of a decoder and its options, and which options go together.

Invariant: every config that `check` accepts can be built, trained, cached and decoded; every
default is the simplest choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec


class RopeScaling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rotary positions for a context longer than in training.

    `linear` divides all frequencies by `factor` (arXiv 2306.15595). `ntk` multiplies theta by
    factor^(C / (C - 2)), so that the highest frequency stays and the lowest is divided by `factor`.
    `yarn` keeps the channel pairs with more than `beta_fast` rotations in the original context,
    divides the frequencies of those with fewer than `beta_slow`, and interpolates between (arXiv
    2309.00071).
    """

    kind: Literal["none", "linear", "ntk", "yarn"] = "none"
    factor: float = 1.0
    original_context: int = 0  # 0: context / factor
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 0.0  # of queries and of keys, for yarn; 0: 0.1 ln(factor) + 1


class DualConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The dual feed-forward: a lite path, an expert path, and a router that chooses one per token.

    The lite path has `small_ratio * ffn_dim` hidden channels, the expert `ffn_dim`. With `drop`, in
    training alone, the expert computes at most ceil(capacity_factor * expert_share * T) tokens of a
    sequence, the first ones routed to it; the output of this layer is zero for the rest. `balance`
    is the weight of the loss that keeps the expert's share of the tokens near `expert_share`.
    """

    small_ratio: float = 0.5
    temperature: float = 1.0
    expert_share: float = 0.5
    capacity_factor: float = 1.25
    drop: bool = False
    balance: float = 0.01

    def capacity(self, length: int) -> int:
        """Returns the most tokens of a sequence that the expert computes in training with `drop`.

        Example:
            >>> DualConfig(capacity_factor=1.0, expert_share=0.25).capacity(10)
            3
        """
        return min(length, math.ceil(self.capacity_factor * self.expert_share * length))


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The shape of a decoder. `vocab_size` 0 is the size of the tokenizer's vocabulary.

    `window` is the number of positions a query attends to, its own included (0: all before it;
    arXiv 2004.05150). Soft-caps bound scores and logits by c * tanh(x / c) (0: off; arXiv
    2408.00118). `dropout` applies to the embedding and to the output of every attention and
    feed-forward layer (arXiv 1207.0580). `biases: all` includes the biases of `norm: layer`.
    """

    vocab_size: int = 0
    dim: int = 256
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int = 4
    ffn_dim: int = 688
    context: int = 256
    rope_theta: float = 10_000.0
    qk_norm: bool = False
    tied: bool = True
    norm_eps: float = 1e-5
    norm: Literal["rms", "layer"] = "rms"
    ffn: Literal["swiglu", "geglu", "gelu", "relu2", "dual"] = "swiglu"
    dual: DualConfig = DualConfig()
    positions: Literal["rope", "alibi", "learned", "none"] = "rope"
    rope_scaling: RopeScaling = RopeScaling()
    window: int = 0
    attn_softcap: float = 0.0
    logit_softcap: float = 0.0
    biases: Literal["none", "qkv", "all"] = "none"
    dropout: float = 0.0

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.dim // self.num_heads

    @property
    def lite_dim(self) -> int:
        """Hidden channels of the dual feed-forward's lite path."""
        return max(1, round(self.dual.small_ratio * self.ffn_dim))


def needs_dropout_seeds(config: ModelConfig) -> bool:
    """Returns whether training differs from inference, so that `apply` needs `dropout_seeds`.

    Example:
        >>> needs_dropout_seeds(ModelConfig()), needs_dropout_seeds(ModelConfig(dropout=0.1))
        (False, True)
    """
    drops_tokens = config.ffn == "dual" and config.dual.drop
    return config.dropout > 0 or drops_tokens


def check(config: ModelConfig) -> ModelConfig:
    """Returns the config if a model can be built from it.

    Raises:
        ValueError: fields are out of range or do not fit together; the message names them.
    """
    _check_numbers(config)
    _check_shape(config)
    _check_rope_scaling(config)
    _check_dual(config)
    return config


_COUNTS = (
    "vocab_size",
    "dim",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "ffn_dim",
    "context",
)


def _check_numbers(config: ModelConfig) -> None:
    for field in _COUNTS:
        value = getattr(config, field)
        if value < 1:
            raise ValueError(f"model.{field} must be at least 1, got {value}")
    for field in ("window", "attn_softcap", "logit_softcap"):
        value = getattr(config, field)
        if not 0 <= value < math.inf:
            raise ValueError(f"model.{field} must be positive, or 0 for none, got {value}")
    _check_positive(config, "model", ("rope_theta", "norm_eps"))
    if not 0 <= config.dropout < 1:
        raise ValueError(
            "model.dropout is the fraction of activations to drop:"
            f" at least 0 and below 1, got {config.dropout}"
        )


def _check_positive(
    config: msgspec.Struct,
    name: str,
    fields: Sequence[str],
) -> None:
    for field in fields:
        value = getattr(config, field)
        if not 0 < value < math.inf:
            raise ValueError(f"{name}.{field} must be positive, got {value}")


def _check_shape(config: ModelConfig) -> None:
    is_rope = config.positions == "rope"
    if config.dim % config.num_heads or (is_rope and config.head_dim % 2):
        required = "an even integer" if is_rope else "an integer"
        raise ValueError(
            f"model.dim ({config.dim}) / model.num_heads ({config.num_heads}) must be {required}"
        )
    if config.num_heads % config.num_kv_heads:
        raise ValueError(
            f"model.num_heads ({config.num_heads}) must be"
            f" a multiple of model.num_kv_heads ({config.num_kv_heads})"
        )
    if config.window > config.context:
        raise ValueError(
            f"model.window ({config.window}) is longer than model.context ({config.context});"
            " 0 attends to the full context"
        )


def _check_rope_scaling(config: ModelConfig) -> None:
    scaling = config.rope_scaling
    name = "model.rope_scaling"
    if scaling.kind == "none":
        if scaling != RopeScaling():
            raise ValueError(
                f"{name} has settings but no kind; set {name}.kind to linear, ntk or yarn"
            )
        return
    if config.positions != "rope":
        raise ValueError(
            f"{name} needs model.positions rope, but model.positions is {config.positions};"
            f" remove {name}"
        )
    _check_context_extension(config)
    if scaling.kind == "ntk" and config.head_dim < 4:
        raise ValueError(
            f"{name}.kind ntk needs heads of at least 4 channels, got {config.head_dim}"
        )
    if not 0 < scaling.beta_slow < scaling.beta_fast:
        raise ValueError(
            f"{name}: beta_slow ({scaling.beta_slow:g}) must be between 0 and beta_fast"
        )
    if scaling.attention_factor < 0:
        raise ValueError(f"{name}.attention_factor must be positive, or 0 for 0.1 ln(factor) + 1")


def _check_context_extension(config: ModelConfig) -> None:
    scaling = config.rope_scaling
    name = "model.rope_scaling"
    if not 1 < scaling.factor < math.inf:
        raise ValueError(
            f"{name}.factor is the ratio of the new context to the original one:"
            f" above 1, got {scaling.factor:g}"
        )
    if scaling.original_context < 0:
        raise ValueError(f"{name}.original_context must be positive, or 0 for context / factor")
    if scaling.original_context and config.context > scaling.original_context * scaling.factor:
        raise ValueError(
            f"model.context ({config.context}) is longer than {name}.original_context"
            f" ({scaling.original_context}) * factor ({scaling.factor:g});"
            " raise the factor or lower the context"
        )


def _check_dual(config: ModelConfig) -> None:
    dual = config.dual
    name = "model.dual"
    if config.ffn != "dual":
        if dual != DualConfig():
            raise ValueError(
                f"{name} has settings, but model.ffn is {config.ffn}; set model.ffn to dual"
            )
        return
    _check_positive(dual, name, ("small_ratio", "temperature", "capacity_factor"))
    if not 0 < dual.expert_share < 1:
        raise ValueError(f"{name}.expert_share must be between 0 and 1, got {dual.expert_share}")
    if dual.balance < 0:
        raise ValueError(f"{name}.balance must not be negative, got {dual.balance}")
