"""One layer of the decoder: attention and feed-forward on a residual stream.

Invariant: a block depends on its layer only through its arguments, so one compilation serves all
layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from slm_fn.core import random
from slm_fn.core.types import Params, Tap
from slm_fn.nn import attention, ffn, positions
from slm_fn.nn.cache import Write
from slm_fn.nn.config import ModelConfig
from slm_fn.nn.ops import affine, layer_norm, rms_norm

ATTN_SITE = 0
"""Dropout site of the attention output, and of the embedding, which has seeds of its own."""
FFN_SITE = 1
"""Dropout site of the feed-forward output."""

Block = Callable[..., tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]]
"""`apply` with its options bound, and every lift of it."""


class BlockOptions(NamedTuple):
    """Settings that all layers share and that are not tensors."""

    config: ModelConfig
    backend: Literal["plain", "fused"]
    write: Write


class PositionInputs(NamedTuple):
    """Position-dependent tensors that all layers share."""

    rope_table: tuple[Tensor, Tensor] | None  # each (B, T, 1, C / 2)
    bias_BHTS: Tensor | None


class LayerCache(NamedTuple):
    """Keys and values of one layer, and where the new ones are written."""

    k_BSKC: Tensor
    v_BSKC: Tensor
    positions_BT: Tensor


def apply(
    options: BlockOptions,
    params: Params,
    x: Float[Tensor, "B T D"],
    inputs: PositionInputs,
    layer_cache: LayerCache | None,
    dropout_seeds: Int[Tensor, " B"] | None,
    tap: Tap,
) -> tuple[Float[Tensor, "B T D"], tuple[Tensor, Tensor], Tensor | None]:
    """One layer: attention and feed-forward, each of the normed stream, each added to it.

        x = x + attention(norm(x))
        x = x + ffn(norm(x))

    Args:
        options: bound by the caller, since they are not tensors.
        params: of this layer, not stacked.
        x: the residual stream.
        inputs: shared by all layers.
        layer_cache: of the preceding tokens.
        dropout_seeds: of this layer; None in inference.
        tap: called with `attn` and `ffn`.

    Returns:
        The residual stream, the layer's keys and values, and the routing of a dual feed-forward.
    """
    config = options.config
    normed_BTD = norm(config, params, "attn_norm", x)
    q_BTHC, k_BSKC, v_BSKC = project_qkv(config, params["attn"], normed_BTD, inputs.rope_table)
    if layer_cache is not None:
        k_BSKC = options.write(layer_cache.k_BSKC, k_BSKC, layer_cache.positions_BT)
        v_BSKC = options.write(layer_cache.v_BSKC, v_BSKC, layer_cache.positions_BT)
    y_BTHC = attention.attend(
        q_BTHC,
        k_BSKC.to(q_BTHC.dtype),
        v_BSKC.to(q_BTHC.dtype),
        inputs.bias_BHTS,
        options.backend,
        scale=config.head_dim**-0.5 * positions.attention_factor(config.rope_scaling) ** 2,
        softcap=config.attn_softcap,
    )
    attn_BTD = affine(params["attn"], "o", y_BTHC.flatten(2))
    x = x + tap("attn", dropout(config, attn_BTD, dropout_seeds, ATTN_SITE))

    normed_BTD = norm(config, params, "ffn_norm", x)
    ffn_BTD, route_BT3 = ffn.apply(
        config,
        params["ffn"],
        normed_BTD,
        training=dropout_seeds is not None,
        decoding=layer_cache is not None,
    )
    x = x + tap("ffn", dropout(config, ffn_BTD, dropout_seeds, FFN_SITE))
    return x, (k_BSKC, v_BSKC), route_BT3


def project_qkv(
    config: ModelConfig,
    params: Params,
    x: Float[Tensor, "B T D"],
    rope_table: tuple[Tensor, Tensor] | None,
) -> tuple[Float[Tensor, "B T H C"], Float[Tensor, "B T K C"], Float[Tensor, "B T K C"]]:
    """Returns queries, keys and values by head; queries and keys are normed and rotated.

    References: arXiv 2302.05442 (`qk_norm`), 2104.09864 (RoPE).
    """
    q_BTHC = _split_heads(affine(params, "q", x), config.head_dim)
    k_BTKC = _split_heads(affine(params, "k", x), config.head_dim)
    v_BTKC = _split_heads(affine(params, "v", x), config.head_dim)
    if config.qk_norm:
        q_BTHC = rms_norm(params["q_norm"], q_BTHC, config.norm_eps)
        k_BTKC = rms_norm(params["k_norm"], k_BTKC, config.norm_eps)
    if rope_table is not None:
        q_BTHC = positions.rotate(q_BTHC, rope_table)
        k_BTKC = positions.rotate(k_BTKC, rope_table)
    return q_BTHC, k_BTKC, v_BTKC


def _split_heads(x: Tensor, head_dim: int) -> Tensor:
    """From (B, T, H C) to (B, T, H, C)."""
    num_heads = x.shape[-1] // head_dim
    return x.reshape(*x.shape[:-1], num_heads, head_dim)


def norm(
    config: ModelConfig,
    params: Params,
    name: str,
    x: Tensor,
) -> Tensor:
    """Applies the norm that the config names, with the parameters `name` and `name + "_bias"`."""
    if config.norm == "rms":
        return rms_norm(params[name], x, config.norm_eps)
    return layer_norm(params[name], params.get(f"{name}_bias"), x, config.norm_eps)


def dropout(
    config: ModelConfig,
    x: Tensor,
    dropout_seeds: Tensor | None,
    site: int,
) -> Tensor:
    """Applies dropout with one seed per row; without seeds, returns the input unchanged."""
    if dropout_seeds is None:
        return x
    return random.dropout(x, config.dropout, dropout_seeds, site)
