"""The parameters of a decoder as data: every shape by path; counts and FLOPs derived from it.

Invariant: `param_specs` is the only description of the parameters; init, counts, FLOPs and the
optimizer's parameter groups read it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from slm_fn.core import tree
from slm_fn.core.types import Path
from slm_fn.nn.config import ModelConfig, check


class ParamSpec(NamedTuple):
    """One parameter: shape, initial standard deviation (None: ones), and whether it is a matrix.

    `is_matrix` is True for the block matrices, which weight decay and Muon act on.
    """

    shape: tuple[int, ...]
    init_std: float | None
    is_matrix: bool = False


def _embed_std(config: ModelConfig) -> float:
    """The initial standard deviation of the embedding: 1 if untied, at most 0.25 / sqrt(D) if tied.

    If tied, the initial logit of the input token itself is std * D while all others are near zero.
    Bounded by ln(1 + V / 20), it gets at most a twentieth of the probability, and the first loss is
    within 2 % of ln V.
    """
    if not config.tied:
        return 1.0
    max_logit = math.log1p(config.vocab_size / 20)
    inverse_root: float = config.dim**-0.5
    return min(0.25, max_logit * inverse_root) * inverse_root


def param_specs(config: ModelConfig) -> dict[str, Any]:
    """Returns the spec of every parameter, as a nested dict like the parameters themselves.

    Matrices that write to the residual stream start at zero, so that a fresh block is the identity.
    Learned positions start at a quarter of the embedding's size, so that they do not dominate the
    token embedding.

    Raises:
        ValueError: no model can be built from the config.

    References: arXiv 2203.03466 (zero-initialised outputs), 1608.05859 (tied embedding).
    """
    check(config)
    V = config.vocab_size
    D = config.dim
    embed_std = _embed_std(config)
    specs: dict[str, Any] = {"embed": ParamSpec((V, D), embed_std)}
    if config.positions == "learned":
        specs["positions"] = ParamSpec((config.context, D), embed_std / 4)
    specs["blocks"] = {
        **_norm_specs(config, "attn_norm"),
        "attn": _attention_specs(config),
        **_norm_specs(config, "ffn_norm"),
        "ffn": _ffn_specs(config),
    }
    specs |= _norm_specs(config, "norm", is_stacked=False)
    if not config.tied:
        specs["head"] = ParamSpec((V, D), 0.25 * D**-0.5)
    return specs


def _matrix_specs(
    config: ModelConfig,
    name: str,
    num_out: int,
    num_in: int,
    has_bias: bool,
    init_zero: bool = False,
) -> dict[str, ParamSpec]:
    L = config.num_layers
    init_std = 0.0 if init_zero else num_in**-0.5
    specs = {name: ParamSpec((L, num_out, num_in), init_std, is_matrix=True)}
    if has_bias:
        specs[f"{name}_bias"] = ParamSpec((L, num_out), 0.0)
    return specs


def _norm_specs(
    config: ModelConfig,
    name: str,
    is_stacked: bool = True,
) -> dict[str, ParamSpec]:
    shape = (config.num_layers, config.dim) if is_stacked else (config.dim,)
    specs = {name: ParamSpec(shape, None)}
    if config.norm == "layer" and config.biases == "all":
        specs[f"{name}_bias"] = ParamSpec(shape, 0.0)
    return specs


def _attention_specs(config: ModelConfig) -> dict[str, ParamSpec]:
    L = config.num_layers
    D = config.dim
    C = config.head_dim
    kv_dim = config.num_kv_heads * C
    has_qkv_bias = config.biases != "none"
    specs = {
        **_matrix_specs(config, "q", D, D, has_qkv_bias),
        **_matrix_specs(config, "k", kv_dim, D, has_qkv_bias),
        **_matrix_specs(config, "v", kv_dim, D, has_qkv_bias),
    }
    if config.qk_norm:
        specs["q_norm"] = ParamSpec((L, C), None)
        specs["k_norm"] = ParamSpec((L, C), None)
    return specs | _matrix_specs(config, "o", D, D, config.biases == "all", init_zero=True)


def _ffn_specs(config: ModelConfig) -> dict[str, Any]:
    if config.ffn != "dual":
        return _mlp_specs(config, config.ffn_dim, is_gated=config.ffn in ("swiglu", "geglu"))
    L = config.num_layers
    D = config.dim
    return {
        # The router is not a matrix for weight decay or orthogonalisation: only the difference of
        # its two rows has an effect.
        "router": ParamSpec((L, 2, D), D**-0.5),
        "lite": _mlp_specs(config, config.lite_dim, is_gated=True),
        "expert": _mlp_specs(config, config.ffn_dim, is_gated=True),
    }


def _mlp_specs(
    config: ModelConfig,
    hidden_dim: int,
    is_gated: bool,
) -> dict[str, ParamSpec]:
    D = config.dim
    has_bias = config.biases == "all"
    specs: dict[str, ParamSpec] = {}
    if is_gated:
        specs |= _matrix_specs(config, "gate", hidden_dim, D, has_bias)
    specs |= _matrix_specs(config, "up", hidden_dim, D, has_bias)
    specs |= _matrix_specs(config, "down", D, hidden_dim, has_bias, init_zero=True)
    return specs


def matrix_paths(config: ModelConfig) -> frozenset[Path]:
    """Returns the paths of the block matrices, which weight decay and Muon act on.

    Embedding, head, norms, biases and router are not among them.
    """
    specs = tree.flatten_dict(param_specs(config))
    return frozenset(path for path, spec in specs.items() if spec.is_matrix)


def param_sizes(config: ModelConfig) -> dict[Path, int]:
    """Returns the number of elements of every parameter by path."""
    specs = tree.flatten_dict(param_specs(config))
    return {path: math.prod(spec.shape) for path, spec in specs.items()}


def count_params(config: ModelConfig) -> int:
    """Returns the number of parameters.

    Example:
        >>> count_params(ModelConfig(vocab_size=64, dim=32, num_layers=2, ffn_dim=64))
        22688
    """
    return sum(param_sizes(config).values())


def train_flops_per_token(config: ModelConfig, seq_len: int) -> int:
    """Returns the floating-point operations to train on one token of a sequence.

        6 per weight of a matrix product, and 12 D per layer and attended key

    A token attends to T / 2 keys on average, or to W - W^2 / 2T with a window W. A dual
    feed-forward that drops tokens computes the expert for its capacity at most; without `drop` it
    computes both paths for every token.

    Args:
        config: of the model.
        seq_len: tokens T of a sequence.

    References: arXiv 2204.02311, appendix B (here causal attention counts half).
    """
    window = min(config.window or seq_len, seq_len)
    num_attended_pairs = window * (2 * seq_len - window)
    attention_flops = 6 * config.num_layers * config.dim * num_attended_pairs // seq_len

    expert_fraction: float = 1
    if config.ffn == "dual" and config.dual.drop:
        expert_fraction = config.dual.capacity(seq_len) / seq_len
    matrices = matrix_paths(config)
    num_weights: float = 0
    for path, size in param_sizes(config).items():
        if path in matrices or path.endswith("/router"):
            is_expert = path.startswith("blocks/ffn/expert")
            num_weights += size * (expert_fraction if is_expert else 1)
    num_weights += config.vocab_size * config.dim
    return round(6 * num_weights) + attention_flops
