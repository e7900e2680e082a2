"""The decoder of a model: what an engine needs of it, with the fastest forward pass available.

Invariant: whichever forward pass `select` takes, the logits are those of `gpt.apply` within
rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from slm_fn.core import native, tree
from slm_fn.core.types import Apply, Params
from slm_fn.infer import native_step
from slm_fn.lift.quant import Quant4
from slm_fn.nn import gpt
from slm_fn.nn.cache import KVCache
from slm_fn.nn.config import ModelConfig

InitCache = Callable[[Params, int, int], KVCache]
"""`(params, batch_size, max_len)` to an empty cache."""

ENGINES = ("auto", "native", "eager")


class Decoder(NamedTuple):
    """A model as the engine runs it.

    Attributes:
        apply: the forward pass. It may have `lift_block` bound, to compile the block.
        init_cache: makes an empty cache.
        params: the parameters.
        is_batch_invariant: whether a step gives each token the same bits whatever the number of
            rows, of tokens per row and of keys.
        engine: what runs a step of few tokens: `native` (compiled C++ on a CPU) or `eager`.
        reason: why that engine was selected.
    """

    apply: Apply
    init_cache: InitCache
    params: Params
    is_batch_invariant: bool = False
    engine: Literal["native", "eager"] = "eager"
    reason: str = "requested"


def select(
    config: ModelConfig,
    params: Params,
    engine: str = "auto",
) -> Decoder:
    """Returns the decoder of a model.

    Args:
        config: the architecture.
        params: the parameters; the native engine computes only with these.
        engine: `native`, `eager`, or `auto`, which is native where that is available. The first
            use on a machine compiles it, which takes some seconds.

    Raises:
        ValueError: there is no such engine, or `native` is not available.

    Example:
        >>> config = ModelConfig(vocab_size=64, dim=32, num_layers=2, ffn_dim=64)
        >>> select(config, gpt.init(config, key=0), "eager").reason
        'requested'
    """
    if engine not in ENGINES:
        raise ValueError(f"decode engine {engine!r} is not one of {', '.join(ENGINES)}")
    eager = Decoder(partial(gpt.apply, config), partial(gpt.init_cache, config), params)
    if engine == "eager":
        return eager
    obstacle = _native_obstacle(config, params)
    if not obstacle:
        try:
            step = native_step.load()
        except native.Unavailable as error:
            obstacle = str(error)
    if not obstacle:
        return eager._replace(
            apply=native_step.NativeApply(config, params, step, fallback=eager.apply),
            is_batch_invariant=True,
            engine="native",
            reason="a step of few rows is one call on this CPU",
        )
    if engine == "native":
        raise ValueError(
            f"decode engine native is not available: {obstacle}; use auto or eager instead"
        )
    return eager._replace(reason=obstacle)


def _native_obstacle(config: ModelConfig, params: Params) -> str:
    """Why the native step does not support this model, or ""."""
    lanes = native_step.NUM_LANES
    if any(leaf.device.type != "cpu" for leaf in tree.leaves(params)):
        return "the model is not on a CPU"
    if config.ffn == "dual":
        return "the dual feed-forward has no native step"
    if config.dim % lanes or config.ffn_dim % lanes or config.head_dim > 1024:
        return f"width and feed-forward width are not multiples of {lanes}"
    leaves = tree.flatten_dict(params).values()
    dtypes = {leaf.dtype for leaf in leaves if isinstance(leaf, Tensor)}
    if dtypes not in ({torch.float32}, {torch.bfloat16}, set()):
        return "the weights are neither all float32 nor all bfloat16"
    group_sizes = _int4_group_sizes(params)
    if any(size < 2 * lanes or size & (size - 1) for size in group_sizes):
        return f"the groups of 4-bit weights are not powers of two from {2 * lanes} up"
    return ""


def _int4_group_sizes(params: Params) -> set[int]:
    sizes = set()
    for leaf in tree.flatten_dict(params["blocks"]).values():
        if isinstance(leaf, Quant4):
            num_inputs = 2 * leaf.q.shape[-1]
            sizes.add(num_inputs // leaf.scale.shape[-1])
    return sizes
