"""The decoder: init, init_cache, apply, and the block it repeats. Block weights are stacked (L, ...).

Invariant: one `apply` serves every option of `ModelConfig`; given `noise` it trains, without it infers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from slm_fn.core import random, tree
from slm_fn.core.types import Params, Path
from slm_fn.nn import attention, cache, ffn, positions
from slm_fn.nn.cache import Cache, KVCache, Write
from slm_fn.nn.config import DualConfig, ModelConfig, RopeScaling, check, is_noisy
from slm_fn.nn.ops import affine, embed, layer_norm, logits, rms_norm
from slm_fn.nn.spec import Weight, count, flops, matrices, sizes, spec

__all__ = [
    "DualConfig",
    "ModelConfig",
    "RopeScaling",
    "Weight",
    "apply",
    "block",
    "check",
    "count",
    "flops",
    "init",
    "init_cache",
    "is_noisy",
    "matrices",
    "sizes",
    "spec",
]

_ATTN, _FFN = 0, 1  # the sites of a layer that drop


def init(config: ModelConfig, key: random.Key) -> Params:
    """Fresh float32 parameters: each leaf is drawn from its own key, `fold_in(key, path)`.

    Example:
        >>> params = init(ModelConfig(vocab_size=64, dim=32, num_layers=2, ffn_dim=64), key=0)
        >>> params["blocks"]["attn"]["q"].shape
        torch.Size([2, 32, 32])
    """

    def draw(path: Path, weight: Weight) -> Tensor:
        if weight.std is None:
            return torch.ones(weight.shape)
        if weight.std == 0.0:
            return torch.zeros(weight.shape)
        return random.normal(random.fold_in(key, path), weight.shape, weight.std)

    return tree.update_in(spec(config), draw)


def init_cache(config: ModelConfig, params: Params, batch: int, size: int | None = None) -> KVCache:
    """An empty cache that fits the model, in its parameters' dtype and on their device.

    A window does not shrink it: keys that no query sees any more stay where they are.

    Raises:
        ValueError: room for places that were never learned.
    """
    like = params["norm"]
    size = config.context if size is None else size
    if config.positions == "learned" and size > config.context:
        raise ValueError(f"a cache of {size} is longer than the {config.context} positions that the model learned")
    return cache.init(config.num_layers, batch, size, config.num_kv_heads, config.head_dim, like.dtype, like.device)


def _no_tap(name: str, x: Tensor) -> Tensor:
    return x


def _as_is(block: Callable[..., Any]) -> Callable[..., Any]:
    return block


def apply(
    config: ModelConfig,
    params: Params,
    tokens: Int[Tensor, "B T"],
    past: Cache | None = None,
    *,
    noise: Int[Tensor, " B"] | None = None,
    segments: Int[Tensor, "B T"] | None = None,
    tap: Callable[[str, Tensor], Tensor] = _no_tap,
    watch: Callable[[str, Tensor], Any] = _no_tap,
    head: Callable[..., Any] = logits,
    lift_block: Callable[[Callable[..., Any]], Callable[..., Any]] = _as_is,
    backend: attention.Backend = "auto",
) -> tuple[Any, Cache | None]:
    """Tokens to logits (B, T, V), or to whatever `head(weight, hidden_BTD)` makes of the last hidden states.

    Args:
        past: keys and values of what came before (`Slots` are written over); the tokens continue each row at its own
            length. How full it is is not looked at (that would stall a GPU): the caller does, with `cache.check_room`.
        noise: a number per row (`random.row_noise`). Given, the model trains: it drops what the config says. Absent,
            it infers.
        segments: a run of one number is a text of its own: it attends to itself alone, and its places count from 0.
        tap: sees (and may replace) every activation by name: `0/attn`, `0/ffn`, ..., `final`.
        watch: is told what a layer reports beside its output, outside of the block: `0/route`, ... of a dual
            feed-forward (see `ffn.dual`).
        head: is given `softcap=` too where the config caps the logits.
        lift_block: wraps the block function, called once per layer with nothing but tensors that differ: remat, jit.

    Raises:
        ValueError: more tokens than the context, or the whole cache, has room for; segments or noise with a cache.

    Example:
        >>> config = ModelConfig(vocab_size=64, dim=32, num_layers=2, ffn_dim=64)
        >>> logits, _ = apply(config, init(config, key=0), torch.zeros(1, 5, dtype=torch.long))
        >>> logits.shape
        torch.Size([1, 5, 64])
    """
    _check_call(config, tokens, past, segments, noise)
    start = tokens.new_zeros(1, 1) if past is None else past.length[:, None]
    places = start + torch.arange(tokens.shape[1], device=tokens.device)
    since = None if segments is None else attention.segment_starts(segments)
    turns = places if since is None else places - since
    noises = _per_layer(config, noise)
    x = _dropped(config, enter(config, params, tokens, turns), noises[0], _ATTN)
    chosen = attention.choose(backend, x, config.attn_softcap)
    bias = _bias(config, chosen, places, past, since, x.dtype)
    table = _table(config, turns, x.dtype)
    run = lift_block(partial(block, config, chosen, cache.writer(past)))
    written = []
    for i, layer in enumerate(tree.unstack(params["blocks"])):
        kv = None if past is None else (past.k[i], past.v[i], places)
        x, kv, route = run(layer, x, table, bias, kv, noises[i + 1], _tap_of(i, tap))
        if route is not None:
            watch(f"{i}/route", route)
        if past is not None:  # else nobody reads them, and remat is to forget them
            written.append(kv)
    x = tap("final", _norm(config, params, "norm", x))
    softcap = {"softcap": config.logit_softcap} if config.logit_softcap else {}
    out = head(params["embed" if config.tied else "head"], x, **softcap)
    return out, None if past is None else cache.grown(past, written, tokens.shape[1])


def block(
    config: ModelConfig,
    backend: Any,
    write: Write,
    params: Params,
    x: Float[Tensor, "B T D"],
    table: tuple[Tensor, Tensor] | None,
    bias_BHTS: Tensor | None,
    kv: tuple[Tensor, Tensor, Tensor] | None,
    noise: Int[Tensor, " B"] | None,
    tap: Callable[[str, Tensor], Tensor],
) -> tuple[Float[Tensor, "B T D"], tuple[Tensor, Tensor], Tensor | None]:
    """One layer: attention and feed-forward, each on a normed copy and added back.

    Returns:
        The sum, the layer's keys and values, and where a dual feed-forward sent its tokens.
    """
    q, k, v = project(config, params["attn"], _norm(config, params, "attn_norm", x), table)
    if kv is not None:
        k, v = write(kv[0], k, kv[2]), write(kv[1], v, kv[2])
    scale = config.head_dim**-0.5 * positions.attention_factor(config.rope_scaling) ** 2
    y = attention.attend(q, k.to(q.dtype), v.to(q.dtype), bias_BHTS, backend, scale, config.attn_softcap)
    x = x + tap("attn", _dropped(config, affine(params["attn"], "o", y.flatten(2)), noise, _ATTN))
    h, route = ffn.run(config, params["ffn"], _norm(config, params, "ffn_norm", x), noise is not None)
    return x + tap("ffn", _dropped(config, h, noise, _FFN)), (k, v), route


def project(
    config: ModelConfig, params: Params, x: Float[Tensor, "B T D"], table: tuple[Tensor, Tensor] | None
) -> tuple[Float[Tensor, "B T H C"], Float[Tensor, "B T K C"], Float[Tensor, "B T K C"]]:
    """Queries, keys, values by head; queries and keys normed (`qk_norm`, arXiv 2302.05442) and rotated."""
    C = config.head_dim
    q, k, v = (affine(params, name, x).unflatten(-1, (-1, C)) for name in ("q", "k", "v"))
    if config.qk_norm:
        q, k = rms_norm(params["q_norm"], q, config.norm_eps), rms_norm(params["k_norm"], k, config.norm_eps)
    return (q, k, v) if table is None else (positions.rotate(q, table), positions.rotate(k, table), v)


def _tap_of(layer: int, tap: Callable[[str, Tensor], Tensor]) -> Callable[[str, Tensor], Tensor]:
    """The tap with the layer's number put in front; without one every layer gets the same: one compile for all."""
    return tap if tap is _no_tap else lambda name, x: tap(f"{layer}/{name}", x)


def _check_call(config: ModelConfig, tokens: Tensor, past: Any, segments: Any, noise: Any) -> None:
    room, new = config.context if past is None else past.k.shape[2], tokens.shape[1]
    if room < new:
        raise ValueError(f"{new} tokens do not fit the {'context' if past is None else 'cache'} of {room}")
    if segments is not None and past is not None:
        raise ValueError("segments are for whole rows; with a cache give each text a row of its own")
    if noise is not None and past is not None:
        raise ValueError("noise is for training; with a cache nothing is dropped")


def _per_layer(config: ModelConfig, noise: Tensor | None) -> Sequence[Tensor | None]:
    """A row's noise for the embedding and for every layer, as tensors, so that the block sees no layer's number."""
    if noise is None:
        return [None] * (config.num_layers + 1)
    return random.fold(noise[:, None], torch.arange(config.num_layers + 1, device=noise.device)).unbind(1)


def enter(
    config: ModelConfig, params: Params, tokens: Int[Tensor, "B T"], turns: Int[Tensor, "#B T"]
) -> Float[Tensor, "B T D"]:
    """What the first block sees: the tokens' embeddings, and those of their places where they were learned."""
    x = embed(params["embed"], tokens).to(params["norm"].dtype)
    return x + embed(params["positions"], turns).to(x.dtype) if config.positions == "learned" else x


def _bias(
    config: ModelConfig, backend: str, places: Tensor, past: Cache | None, since: Tensor | None, dtype: torch.dtype
) -> Tensor | None:
    """What hides keys from queries, once for all layers; None where the fused kernel knows by itself."""
    T = places.shape[1]
    window = config.window if past is not None or config.window < T else 0
    if backend == "fused" and past is None and since is None and not window and config.positions != "alibi":
        return None
    seen = attention.causal_mask(places, T if past is None else past.k.shape[2], since, window)
    bias = attention.as_bias(seen, dtype)
    if config.positions == "alibi":
        return attention.add_alibi(bias, places, positions.alibi_slopes(config.num_heads))
    return bias


def _table(config: ModelConfig, turns: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    if config.positions != "rope":
        return None
    turning = positions.frequencies(
        config.head_dim, config.rope_theta, config.rope_scaling, config.context, turns.device
    )
    return positions.rope_table(turns, turning, dtype)


def _norm(config: ModelConfig, params: Params, name: str, x: Tensor) -> Tensor:
    if config.norm == "rms":
        return rms_norm(params[name], x, config.norm_eps)
    return layer_norm(params[name], params.get(f"{name}_bias"), x, config.norm_eps)


def _dropped(config: ModelConfig, x: Tensor, noise: Tensor | None, site: int) -> Tensor:
    return x if noise is None else random.drop(x, config.dropout, noise, site)
