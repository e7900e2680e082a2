"""The decoder: ModelConfig, spec, init, apply, count, flops. Llama's layout, block weights stacked (L, ...).

Invariant: `spec` is the one description of the parameters; init, count, flops and the optimizer's choices read it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import msgspec
import torch
from jaxtyping import Float, Int
from torch import Tensor

from slm_fn.core import random, tree
from slm_fn.core.types import Params, Path
from slm_fn.nn import attention, cache, ffn, positions
from slm_fn.nn.cache import KVCache
from slm_fn.nn.ops import embed, linear, rms_norm


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The shape of a decoder. `vocab_size` 0 means: as many as the tokenizer has."""

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

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.dim // self.num_heads


class Weight(NamedTuple):
    """One parameter: its shape, the standard deviation it starts with (None: ones), whether it is a block matrix."""

    shape: tuple[int, ...]
    std: float | None
    matrix: bool = False


def check(config: ModelConfig) -> ModelConfig:
    """Return the config if a model can be built from it.

    Raises:
        ValueError: names the fields that do not fit, and why.
    """
    for field in ("vocab_size", "dim", "num_layers", "num_heads", "num_kv_heads", "ffn_dim", "context"):
        if getattr(config, field) < 1:
            raise ValueError(f"model.{field} must be at least 1, got {getattr(config, field)}")
    if config.dim % config.num_heads or config.head_dim % 2:
        raise ValueError(
            f"model.dim ({config.dim}) / model.num_heads ({config.num_heads}) must be a whole, even number"
        )
    if config.num_heads % config.num_kv_heads:
        raise ValueError(
            f"model.num_heads ({config.num_heads}) must be a multiple of model.num_kv_heads ({config.num_kv_heads})"
        )
    return config


def _tied_std(config: ModelConfig) -> float:
    """0.25 / sqrt(D), less where a fresh model would bet on its own input.

    Tied, a token's logit for itself starts at std * D while all others are near zero; held below ln(1 + V / 20) it
    takes at most a twentieth of the probability, and the first loss stays within 2 % of ln V.
    """
    return min(0.25, math.log1p(config.vocab_size / 20) * config.dim**-0.5) * config.dim**-0.5


def spec(config: ModelConfig) -> dict[str, Any]:
    """Every parameter by path. Matrices that write to the residual stream are zero: a fresh block is the identity.

    References: arXiv 2203.03466 (zero-initialised outputs), 1608.05859 (tied embedding).
    """
    check(config)
    L, D, F, C = config.num_layers, config.dim, config.ffn_dim, config.head_dim
    KC = config.num_kv_heads * C

    def dense(out: int, into: int, std: float | None = None) -> Weight:
        return Weight((L, out, into), into**-0.5 if std is None else std, matrix=True)

    heads = {"q_norm": Weight((L, C), None), "k_norm": Weight((L, C), None)} if config.qk_norm else {}
    return {
        "embed": Weight((config.vocab_size, D), _tied_std(config) if config.tied else 1.0),
        "blocks": {
            "attn_norm": Weight((L, D), None),
            "attn": {"q": dense(D, D), "k": dense(KC, D), "v": dense(KC, D), **heads, "o": dense(D, D, 0.0)},
            "ffn_norm": Weight((L, D), None),
            "ffn": {"gate": dense(F, D), "up": dense(F, D), "down": dense(D, F, 0.0)},
        },
        "norm": Weight((D,), None),
        **({} if config.tied else {"head": Weight((config.vocab_size, D), 0.25 * D**-0.5)}),
    }


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


def matrices(config: ModelConfig) -> frozenset[Path]:
    """Paths of the block matrices: what weight decay and Muon act on. Embedding, head and norms are not among them."""
    found: set[Path] = set()
    tree.update_in(spec(config), lambda path, w: found.add(path) if w.matrix else None)
    return frozenset(found)


def count(config: ModelConfig) -> int:
    """Number of parameters."""
    sizes: list[int] = []
    tree.update_in(spec(config), lambda _, w: sizes.append(torch.Size(w.shape).numel()))
    return sum(sizes)


def flops(config: ModelConfig, length: int) -> int:
    """Operations to train on one token in a row of `length`: 6 per matrix weight, 12 L D T / 2 to attend.

    References: arXiv 2204.02311, appendix B (causal attention counted as half).
    """
    per_block: list[int] = []
    tree.update_in(spec(config), lambda _, w: per_block.append(torch.Size(w.shape).numel()) if w.matrix else None)
    return 6 * (sum(per_block) + config.vocab_size * config.dim) + 6 * config.num_layers * config.dim * length


def init_cache(config: ModelConfig, params: Params, batch: int, size: int | None = None) -> KVCache:
    """An empty cache that fits the model, in its parameters' dtype and on their device."""
    like = params["norm"]
    size = config.context if size is None else size
    return cache.init(config.num_layers, batch, size, config.num_kv_heads, config.head_dim, like.dtype, like.device)


def _no_tap(name: str, x: Tensor) -> Tensor:
    return x


def _as_is(block: Callable[..., Any]) -> Callable[..., Any]:
    return block


def apply(
    config: ModelConfig,
    params: Params,
    tokens: Int[Tensor, "B T"],
    past: KVCache | None = None,
    *,
    segments: Int[Tensor, "B T"] | None = None,
    tap: Callable[[str, Tensor], Tensor] = _no_tap,
    head: Callable[[Any, Tensor], Any] = linear,
    lift_block: Callable[[Callable[..., Any]], Callable[..., Any]] = _as_is,
    backend: attention.Backend = "auto",
) -> tuple[Any, KVCache | None]:
    """Tokens to logits (B, T, V), or to whatever `head(weight, hidden_BTD)` makes of the last hidden states.

    Args:
        past: keys and values of what came before; the tokens continue each row at its own length. How full it is
            is not looked at (that would stall a GPU): the caller does, with `cache.check_room`.
        segments: a run of one number is a text of its own: it attends to itself alone, and its places count from 0.
        tap: sees (and may replace) every activation by name: `0/attn`, `0/ffn`, ..., `final`.
        lift_block: wraps the block function, called once per layer: remat, jit.

    Raises:
        ValueError: more tokens than the context, or the whole cache, has room for; segments together with a cache.

    Example:
        >>> config = ModelConfig(vocab_size=64, dim=32, num_layers=2, ffn_dim=64)
        >>> logits, _ = apply(config, init(config, key=0), torch.zeros(1, 5, dtype=torch.long))
        >>> logits.shape
        torch.Size([1, 5, 64])
    """
    T = tokens.shape[1]
    room = config.context if past is None else past.k.shape[2]
    if room < T:
        raise ValueError(f"{T} tokens do not fit the {'context' if past is None else 'cache'} of {room}")
    if segments is not None and past is not None:
        raise ValueError("segments are for whole rows; with a cache give each text a row of its own")
    start = tokens.new_zeros(1, 1) if past is None else past.length[:, None]
    places = start + torch.arange(T, device=tokens.device)
    since = None if segments is None else attention.segment_starts(segments)
    mask = attention.causal_mask(places, T if past is None else past.k.shape[2], since)
    x = embed(params["embed"], tokens).to(params["norm"].dtype)
    turns = places if since is None else places - since
    table = positions.rope_table(turns, config.head_dim, config.rope_theta, x.dtype)
    run = lift_block(partial(block, config, backend))
    written = []
    for i, layer in enumerate(tree.unstack(params["blocks"])):
        kv = None if past is None else (past.k[i], past.v[i], places)
        x, kv = run(layer, x, table, mask, kv, lambda name, h, i=i: tap(f"{i}/{name}", h))
        written.append(kv)
    x = tap("final", rms_norm(params["norm"], x, config.norm_eps))
    out = head(params["embed" if config.tied else "head"], x)
    if past is None:
        return out, None
    return out, KVCache(torch.stack([k for k, _ in written]), torch.stack([v for _, v in written]), past.length + T)


def block(
    config: ModelConfig,
    backend: attention.Backend,
    params: Params,
    x: Float[Tensor, "B T D"],
    table: tuple[Tensor, Tensor],
    mask_BTS: Tensor,
    kv: tuple[Tensor, Tensor, Tensor] | None,
    tap: Callable[[str, Tensor], Tensor],
) -> tuple[Float[Tensor, "B T D"], tuple[Tensor, Tensor]]:
    """One layer: attention and feed-forward, each on a normed copy and added back. Returns its keys and values too."""
    h = rms_norm(params["attn_norm"], x, config.norm_eps)
    q, k, v = project(config, params["attn"], h, table)
    if kv is not None:
        k, v = cache.write(kv[0], k, kv[2]), cache.write(kv[1], v, kv[2])
    y = attention.attend(q, k.to(q.dtype), v.to(q.dtype), mask_BTS, backend)
    x = x + tap("attn", linear(params["attn"]["o"], y.flatten(2)))
    x = x + tap("ffn", ffn.swiglu(params["ffn"], rms_norm(params["ffn_norm"], x, config.norm_eps)))
    return x, (k, v)


def project(
    config: ModelConfig, params: Params, x: Float[Tensor, "B T D"], table: tuple[Tensor, Tensor]
) -> tuple[Float[Tensor, "B T H C"], Float[Tensor, "B T K C"], Float[Tensor, "B T K C"]]:
    """Queries, keys, values by head; queries and keys normed (`qk_norm`, arXiv 2302.05442) and rotated."""
    C = config.head_dim
    q, k, v = (linear(params[name], x).unflatten(-1, (-1, C)) for name in ("q", "k", "v"))
    if config.qk_norm:
        q, k = rms_norm(params["q_norm"], q, config.norm_eps), rms_norm(params["k_norm"], k, config.norm_eps)
    return positions.rotate(q, table), positions.rotate(k, table), v
