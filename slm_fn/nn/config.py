"""ModelConfig: the shape of a decoder and the options of its family; which of them go together.

Invariant: whatever `check` lets through can be built, trained, cached and decoded; every default is the plain choice.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec


class RopeScaling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rotary positions for a context longer than the one trained at.

    `linear` slows every pair down by `factor` (arXiv 2306.15595); `ntk` raises theta by factor^(C / (C - 2)), so that
    the fastest pair stays and the slowest is slowed by `factor`; `yarn` keeps the pairs that turn more than `beta_fast`
    times in the original context, slows those of fewer than `beta_slow` and blends between (arXiv 2309.00071).
    """

    kind: Literal["none", "linear", "ntk", "yarn"] = "none"
    factor: float = 1.0
    original_context: int = 0  # 0: context / factor
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 0.0  # of queries and of keys, for yarn; 0: 0.1 ln(factor) + 1


class DualConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The dual feed-forward: a lite path of `small_ratio` * ffn_dim, an expert path of ffn_dim, a gate that chooses.

    With `drop`, in training alone, at most ceil(capacity_factor * expert_share * T) tokens of a row reach the expert,
    the first that ask; only these are computed, and the others get nothing from this layer. `balance` weighs the loss
    that draws the experts' share of the tokens to `expert_share`.
    """

    small_ratio: float = 0.5
    temperature: float = 1.0
    expert_share: float = 0.5
    capacity_factor: float = 1.25
    drop: bool = False
    balance: float = 0.01

    def capacity(self, length: int) -> int:
        """The most tokens of a row that reach the expert in training with `drop`."""
        return min(length, math.ceil(self.capacity_factor * self.expert_share * length))


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The shape of a decoder. `vocab_size` 0 means: as many as the tokenizer has.

    `window` is how many places a query sees, its own included (0: all before it; arXiv 2004.05150). Soft-caps bend
    scores and logits to c * tanh(x / c) (0: off; arXiv 2408.00118). `dropout` falls on the embedding and on what every
    block adds (arXiv 1207.0580). `biases: all` includes those of `norm: layer`.
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


def is_noisy(config: ModelConfig) -> bool:
    """Whether training differs from inference, so that `apply` wants its `noise`.

    Example:
        >>> is_noisy(ModelConfig()), is_noisy(ModelConfig(dropout=0.1))
        (False, True)
    """
    return config.dropout > 0 or (config.ffn == "dual" and config.dual.drop)


def check(config: ModelConfig) -> ModelConfig:
    """Return the config if a model can be built from it.

    Raises:
        ValueError: names the fields that do not fit, and why.
    """
    for field in ("vocab_size", "dim", "num_layers", "num_heads", "num_kv_heads", "ffn_dim", "context"):
        if getattr(config, field) < 1:
            raise ValueError(f"model.{field} must be at least 1, got {getattr(config, field)}")
    for field in ("window", "attn_softcap", "logit_softcap"):
        if not 0 <= getattr(config, field) < math.inf:
            raise ValueError(f"model.{field} must be positive, or 0 for none, got {getattr(config, field)}")
    for field in ("rope_theta", "norm_eps"):
        if not 0 < getattr(config, field) < math.inf:
            raise ValueError(f"model.{field} must be positive, got {getattr(config, field)}")
    if not 0 <= config.dropout < 1:
        raise ValueError(f"model.dropout is the share that is dropped: at least 0 and below 1, got {config.dropout}")
    if config.dim % config.num_heads or (config.positions == "rope" and config.head_dim % 2):
        wanted = "a whole, even number" if config.positions == "rope" else "a whole number"
        raise ValueError(f"model.dim ({config.dim}) / model.num_heads ({config.num_heads}) must be {wanted}")
    if config.num_heads % config.num_kv_heads:
        raise ValueError(
            f"model.num_heads ({config.num_heads}) must be a multiple of model.num_kv_heads ({config.num_kv_heads})"
        )
    if config.window > config.context:
        raise ValueError(
            f"model.window ({config.window}) is longer than model.context ({config.context}); 0 sees the whole context"
        )
    _check_rope_scaling(config)
    _check_dual(config)
    return config


def _check_rope_scaling(config: ModelConfig) -> None:
    scaling, name = config.rope_scaling, "model.rope_scaling"
    if scaling.kind == "none":
        if scaling != RopeScaling():
            raise ValueError(f"{name} has settings but no kind; set {name}.kind to linear, ntk or yarn")
        return
    if config.positions != "rope":
        raise ValueError(f"{name} is for model.positions rope, which are {config.positions} here; leave it out")
    if not 1 < scaling.factor < math.inf:
        raise ValueError(f"{name}.factor is how many times the context is stretched: above 1, got {scaling.factor:g}")
    if scaling.original_context < 0:
        raise ValueError(f"{name}.original_context must be positive, or 0 for context / factor")
    if scaling.original_context and config.context > scaling.original_context * scaling.factor:
        raise ValueError(
            f"model.context ({config.context}) is beyond {name}.original_context ({scaling.original_context}) * factor "
            f"({scaling.factor:g}); raise the factor or lower the context"
        )
    if scaling.kind == "ntk" and config.head_dim < 4:
        raise ValueError(f"{name}.kind ntk needs heads of at least 4 channels, here are {config.head_dim}")
    if not 0 < scaling.beta_slow < scaling.beta_fast:
        raise ValueError(f"{name}: beta_slow ({scaling.beta_slow:g}) must lie between 0 and beta_fast")
    if scaling.attention_factor < 0:
        raise ValueError(f"{name}.attention_factor must be positive, or 0 for 0.1 ln(factor) + 1")


def _check_dual(config: ModelConfig) -> None:
    dual, name = config.dual, "model.dual"
    if config.ffn != "dual":
        if dual != DualConfig():
            raise ValueError(f"{name} has settings, but model.ffn is {config.ffn}; set model.ffn to dual")
        return
    for field in ("small_ratio", "temperature", "capacity_factor"):
        if not 0 < getattr(dual, field) < math.inf:
            raise ValueError(f"{name}.{field} must be positive, got {getattr(dual, field)}")
    if not 0 < dual.expert_share < 1:
        raise ValueError(f"{name}.expert_share must lie between 0 and 1, got {dual.expert_share}")
    if dual.balance < 0:
        raise ValueError(f"{name}.balance must not be negative, got {dual.balance}")
