"""The decoder: init, init_cache and apply. Block weights are stacked (L, ...).

Invariant: one `apply` implements every option of `ModelConfig`; with `dropout_seeds` it trains,
without them it infers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from slm_fn.core import random, tree
from slm_fn.core.types import Head, Params, Path, Tap
from slm_fn.nn import attention, block, cache, positions
from slm_fn.nn.block import Block
from slm_fn.nn.cache import Cache, KVCache
from slm_fn.nn.config import DualConfig, ModelConfig, RopeScaling, check, needs_dropout_seeds
from slm_fn.nn.ops import embed, logits
from slm_fn.nn.spec import (
    ParamSpec,
    count_params,
    matrix_paths,
    param_sizes,
    param_specs,
    train_flops_per_token,
)

__all__ = [
    "DualConfig",
    "ModelConfig",
    "ParamSpec",
    "RopeScaling",
    "apply",
    "check",
    "count_params",
    "embed_tokens",
    "init",
    "init_cache",
    "matrix_paths",
    "needs_dropout_seeds",
    "param_sizes",
    "param_specs",
    "train_flops_per_token",
]


def init(config: ModelConfig, key: random.Key) -> Params:
    """Returns initial float32 parameters; each leaf has its own key, `fold_in(key, path)`.

    Example:
        >>> params = init(ModelConfig(vocab_size=64, dim=32, num_layers=2, ffn_dim=64), key=0)
        >>> params["blocks"]["attn"]["q"].shape
        torch.Size([2, 32, 32])
    """

    def init_leaf(path: Path, spec: ParamSpec) -> Tensor:
        if spec.init_std is None:
            return torch.ones(spec.shape)
        if spec.init_std == 0.0:
            return torch.zeros(spec.shape)
        return random.normal(random.fold_in(key, path), spec.shape, spec.init_std)

    return tree.map_with_path(param_specs(config), init_leaf)


def init_cache(
    config: ModelConfig,
    params: Params,
    batch_size: int,
    max_len: int | None = None,
) -> KVCache:
    """Returns an empty cache for the model, in the dtype and on the device of its parameters.

    A window does not make it smaller: keys outside the window stay in the cache.

    Args:
        config: of the model.
        params: of the model.
        batch_size: number of sequences.
        max_len: tokens per sequence; None is the model's context.

    Raises:
        ValueError: `max_len` is longer than the learned positions.
    """
    max_len = config.context if max_len is None else max_len
    if config.positions == "learned" and max_len > config.context:
        raise ValueError(
            f"a cache of {max_len} is longer than the {config.context} learned positions"
            " of the model"
        )
    return cache.init(
        config.num_layers,
        batch_size,
        max_len,
        config.num_kv_heads,
        config.head_dim,
        dtype=params["norm"].dtype,
        device=params["norm"].device,
    )


def _no_tap(name: str, x: Tensor) -> Tensor:
    return x


def _no_lift(block_apply: Block) -> Block:
    return block_apply


def apply(  # noqa: PLR0913 - the options of `core.types.Apply`, and the model's own
    config: ModelConfig,
    params: Params,
    tokens: Int[Tensor, "B T"],
    past: Cache | None = None,
    *,
    dropout_seeds: Int[Tensor, " B"] | None = None,
    segments: Int[Tensor, "B T"] | None = None,
    tap: Tap = _no_tap,
    on_aux: Callable[[str, Tensor], Any] = _no_tap,
    head: Head = logits,
    lift_block: Callable[[Block], Block] = _no_lift,
    backend: attention.Backend = "auto",
) -> tuple[Any, Cache | None]:
    """Runs the decoder: from tokens to logits (B, T, V) and the cache after them.

    Args:
        past: cache of the preceding tokens; each sequence continues at its own length. The caller
            guarantees that the tokens fit: a check of lengths would synchronise with the GPU.
        dropout_seeds: one per row, from `random.row_seeds`; their presence means training.
        segments: runs of equal ids attend only to themselves; each counts positions from 0.
        tap: called with every activation (`0/attn`, `0/ffn`, ..., `final`) and may replace it.
        on_aux: called with other outputs of a layer: `0/route`, ... of `ffn.dual`.
        head: `head(weight, hidden_BTD)`, with `softcap=` if the config caps logits.
        lift_block: wraps the block, which is called once per layer: remat or jit.

    Raises:
        ValueError: more tokens than context or cache; segments or dropout_seeds with a cache.

    Example:
        >>> config = ModelConfig(vocab_size=64, dim=32, num_layers=2, ffn_dim=64)
        >>> apply(config, init(config, key=0), torch.zeros(1, 5, dtype=torch.long))[0].shape
        torch.Size([1, 5, 64])
    """
    _check_call(config, tokens, past, segments, dropout_seeds)
    positions_BT = _positions(tokens, past)
    starts_BT = None if segments is None else attention.segment_starts(segments)
    position_ids_BT = positions_BT if starts_BT is None else positions_BT - starts_BT
    seeds = _layer_seeds(config, dropout_seeds)
    x = embed_tokens(config, params, tokens, position_ids_BT)
    x = block.dropout(config, x, seeds[0], block.ATTN_SITE)
    options = block.BlockOptions(
        config,
        backend=attention.resolve_backend(backend, x, config.attn_softcap),
        write=cache.select_writer(past),
    )
    bias_BHTS = _attention_bias(options, positions_BT, past, starts_BT, x.dtype)
    inputs = block.PositionInputs(_rope_table(config, position_ids_BT, x.dtype), bias_BHTS)
    run_block = lift_block(partial(block.apply, options))
    written = []
    for i, layer in enumerate(tree.unstack(params["blocks"])):
        layer_cache = None if past is None else block.LayerCache(past.k[i], past.v[i], positions_BT)
        x, kv, route = run_block(layer, x, inputs, layer_cache, seeds[i + 1], _layer_tap(i, tap))
        if route is not None:
            on_aux(f"{i}/route", route)
        if past is not None:  # otherwise unused, and remat should free them
            written.append(kv)
    x = tap("final", block.norm(config, params, "norm", x))  # frees the stream before the head
    out = _apply_head(config, params, x, head)
    return out, None if past is None else cache.advance(past, written, tokens.shape[1])


def _positions(tokens: Tensor, past: Cache | None) -> Tensor:
    """Positions (B or 1, T) of the tokens, after those in the cache."""
    first_B1 = tokens.new_zeros(1, 1) if past is None else past.length[:, None]
    return first_B1 + torch.arange(tokens.shape[1], device=tokens.device)


def embed_tokens(
    config: ModelConfig,
    params: Params,
    tokens: Int[Tensor, "B T"],
    position_ids_BT: Int[Tensor, "#B T"],
) -> Float[Tensor, "B T D"]:
    """Returns the input of the first block: token embeddings, plus learned positions if any."""
    x = embed(params["embed"], tokens).to(params["norm"].dtype)
    if config.positions != "learned":
        return x
    return x + embed(params["positions"], position_ids_BT).to(x.dtype)


def _check_call(
    config: ModelConfig,
    tokens: Tensor,
    past: Cache | None,
    segments: Tensor | None,
    dropout_seeds: Tensor | None,
) -> None:
    num_tokens = tokens.shape[1]
    if past is None:
        if num_tokens > config.context:
            raise ValueError(f"{num_tokens} tokens do not fit the context of {config.context}")
        return
    max_len = past.k.shape[2]
    if num_tokens > max_len:
        raise ValueError(f"{num_tokens} tokens do not fit the cache of {max_len}")
    if segments is not None:
        raise ValueError("segments need full sequences; with a cache, use one sequence per text")
    if dropout_seeds is not None:
        raise ValueError("dropout_seeds are for training: with a cache nothing is dropped")


def _layer_seeds(config: ModelConfig, dropout_seeds: Tensor | None) -> Sequence[Tensor | None]:
    """Dropout seeds (B,) for the embedding and for every layer.

    They are tensors, so that the compiled block does not depend on the number of its layer.
    """
    num_seeds = config.num_layers + 1
    if dropout_seeds is None:
        return [None] * num_seeds
    layers = torch.arange(num_seeds, device=dropout_seeds.device)
    return random.fold_in_seeds(dropout_seeds[:, None], layers).unbind(1)


def _layer_tap(layer: int, tap: Tap) -> Tap:
    """The tap with the number of the layer in front of each name.

    Without a tap, all layers get the same function, so that one compilation serves them all.
    """
    if tap is _no_tap:
        return tap
    return lambda name, x: tap(f"{layer}/{name}", x)


def _attention_bias(
    options: block.BlockOptions,
    positions_BT: Tensor,
    past: Cache | None,
    starts_BT: Tensor | None,
    dtype: torch.dtype,
) -> Tensor | None:
    """The mask and ALiBi as a bias for all layers; None where the fused kernel needs none."""
    config = options.config
    T = positions_BT.shape[1]
    has_window = config.window > 0 and (past is not None or config.window < T)
    is_alibi = config.positions == "alibi"
    is_causal = past is None and starts_BT is None and not has_window and not is_alibi
    if options.backend == "fused" and is_causal:
        return None
    num_keys = T if past is None else past.k.shape[2]
    window = config.window if has_window else 0
    mask_BTS = attention.causal_mask(positions_BT, num_keys, starts_BT, window)
    bias_B1TS = attention.mask_to_bias(mask_BTS, dtype)
    if not is_alibi:
        return bias_B1TS
    return attention.add_alibi(bias_B1TS, positions_BT, positions.alibi_slopes(config.num_heads))


def _rope_table(
    config: ModelConfig,
    position_ids_BT: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor] | None:
    if config.positions != "rope":
        return None
    frequencies = positions.rope_frequencies(
        config.head_dim,
        config.rope_theta,
        config.rope_scaling,
        config.context,
        position_ids_BT.device,
    )
    return positions.rope_table(position_ids_BT, frequencies, dtype)


def _apply_head(
    config: ModelConfig,
    params: Params,
    hidden_BTD: Tensor,
    head: Head,
) -> Any:
    weight = params["embed"] if config.tied else params["head"]
    if config.logit_softcap:
        return head(weight, hidden_BTD, softcap=config.logit_softcap)
    return head(weight, hidden_BTD)
