"""The key/value cache as a pytree: init and write; and its in-place variant for one owner.

Invariant: sequences may have different lengths; entries beyond `length` are never read, since the
mask hides them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class KVCache(NamedTuple):
    """Keys and values of every layer, and the number of tokens stored for each sequence."""

    k: Tensor  # (L, B, S, K, C)
    v: Tensor  # (L, B, S, K, C)
    length: Tensor  # (B,) int64


class InPlaceKVCache(NamedTuple):
    """A cache whose buffers `apply` overwrites: the caller must not use the old one afterwards.

    Its tensors may be views of larger buffers.
    """

    k: Tensor  # (L, B, S, K, C)
    v: Tensor  # (L, B, S, K, C)
    length: Tensor  # (B,) int64


Cache = KVCache | InPlaceKVCache
Write = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From a buffer (B, S, K, C), new entries (B, T, K, C) and their positions (B, T) to a buffer."""


def init(
    num_layers: int,
    batch_size: int,
    max_len: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> KVCache:
    """Returns an empty cache for `max_len` tokens in each of `batch_size` sequences."""
    shape = (num_layers, batch_size, max_len, num_kv_heads, head_dim)
    return KVCache(
        k=torch.zeros(shape, dtype=dtype, device=device),
        v=torch.zeros(shape, dtype=dtype, device=device),
        length=torch.zeros(batch_size, dtype=torch.long, device=device),
    )


def write(
    buffer_BSKC: Float[Tensor, "B S K C"],
    new_BTKC: Float[Tensor, "B T K C"],
    positions_BT: Int[Tensor, "B T"],
) -> Float[Tensor, "B S K C"]:
    """Returns a copy of the buffer with new entries at their positions.

    Raises:
        RuntimeError: a position is not below S.
    """
    index_BTKC = positions_BT[..., None, None].expand_as(new_BTKC)
    return buffer_BSKC.scatter(1, index_BTKC, new_BTKC.to(buffer_BSKC.dtype))


def write_in_place(
    buffer_BSKC: Float[Tensor, "B S K C"],
    new_BTKC: Float[Tensor, "B T K C"],
    positions_BT: Int[Tensor, "B T"],
) -> Float[Tensor, "B S K C"]:
    """Writes new entries into the buffer itself and returns it.

    The cost depends on the number of new entries and not on the size of the buffer.
    """
    rows_B1 = torch.arange(new_BTKC.shape[0], device=new_BTKC.device)[:, None]
    return buffer_BSKC.index_put_((rows_B1, positions_BT), new_BTKC.to(buffer_BSKC.dtype))


def select_writer(cache: Cache | None) -> Write:
    """Returns the function that writes keys and values into a cache of this kind."""
    return write_in_place if isinstance(cache, InPlaceKVCache) else write


def advance(
    cache: Cache,
    written: Sequence[tuple[Tensor, Tensor]],
    num_new: int,
) -> Cache:
    """Returns the cache after a forward pass.

    Args:
        cache: before the pass.
        written: for every layer, the buffers of keys and of values that its writer returned.
        num_new: number of tokens added to each sequence.
    """
    length = cache.length + num_new
    if isinstance(cache, InPlaceKVCache):
        return cache._replace(length=length)
    k = torch.stack([layer_k for layer_k, _ in written])
    v = torch.stack([layer_v for _, layer_v in written])
    return KVCache(k, v, length)


def view(
    cache: InPlaceKVCache,
    batch_size: int,
    max_len: int,
) -> InPlaceKVCache:
    """Returns a view of the first sequences and positions of a cache, without a copy.

    Writes to the view change the cache.
    """
    return InPlaceKVCache(
        k=cache.k[:, :batch_size, :max_len],
        v=cache.v[:, :batch_size, :max_len],
        length=cache.length[:batch_size],
    )
