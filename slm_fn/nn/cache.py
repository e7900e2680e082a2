"""The key/value cache as a pytree: init, write, take, reset rows; and the slots of an owner who writes over them.

Invariant: rows may have different lengths; what lies beyond `length` is never read (the mask hides it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class KVCache(NamedTuple):
    """Keys and values of every layer, and how much of each row is filled."""

    k: Tensor  # (L, B, S, K, C)
    v: Tensor  # (L, B, S, K, C)
    length: Tensor  # (B,) int64


class Slots(NamedTuple):
    """A cache written over in place: whoever hands it to `apply` keeps no old one. May be a view of a larger."""

    k: Tensor  # (L, B, S, K, C)
    v: Tensor  # (L, B, S, K, C)
    length: Tensor  # (B,) int64


Cache = KVCache | Slots
Write = Callable[[Tensor, Tensor, Tensor], Tensor]


def init(
    num_layers: int, batch: int, size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> KVCache:
    """An empty cache with room for `size` tokens in each of `batch` rows."""
    shape = (num_layers, batch, size, num_kv_heads, head_dim)
    k, v = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
    return KVCache(k, v, torch.zeros(batch, dtype=torch.long, device=device))


def check_room(cache: Cache, num_new: int) -> None:
    """Refuse tokens that do not fit, before anything is written. Reads `length`: call it outside a trace.

    Raises:
        ValueError: some row would grow beyond the cache.
    """
    size, longest = cache.k.shape[2], int(cache.length.max())
    if longest + num_new > size:
        raise ValueError(f"the cache holds {size} tokens; {longest} are there and {num_new} more do not fit")


def write(
    buffer_BSKC: Float[Tensor, "B S K C"], new_BTKC: Float[Tensor, "B T K C"], positions_BT: Int[Tensor, "B T"]
) -> Float[Tensor, "B S K C"]:
    """The buffer with the new rows at their places, each row at its own."""
    index = positions_BT[..., None, None].expand_as(new_BTKC)
    return buffer_BSKC.scatter(1, index, new_BTKC.to(buffer_BSKC.dtype))


def write_over(
    buffer_BSKC: Float[Tensor, "B S K C"], new_BTKC: Float[Tensor, "B T K C"], positions_BT: Int[Tensor, "B T"]
) -> Float[Tensor, "B S K C"]:
    """`write` into the buffer itself, which costs what is new and not what is there."""
    rows = torch.arange(new_BTKC.shape[0], device=new_BTKC.device)[:, None]
    return buffer_BSKC.index_put_((rows, positions_BT), new_BTKC.to(buffer_BSKC.dtype))


def writer(cache: Cache | None) -> Write:
    """How new keys and values reach a cache of this kind."""
    return write_over if isinstance(cache, Slots) else write


def grown(cache: Cache, layers: Sequence[tuple[Tensor, Tensor]], num_new: int) -> Cache:
    """The cache after a pass: `layers` hold what `writer` returned for the keys and values of each."""
    if isinstance(cache, Slots):
        return cache._replace(length=cache.length + num_new)
    k, v = (torch.stack(written) for written in zip(*layers, strict=True))
    return KVCache(k, v, cache.length + num_new)


def view(slots: Slots, num_rows: int, size: int) -> Slots:
    """The first rows and places of some slots, without a copy: what is written there is written to the slots."""
    return Slots(slots.k[:, :num_rows, :size], slots.v[:, :num_rows, :size], slots.length[:num_rows])


def take(cache: KVCache, rows: Int[Tensor, " N"]) -> KVCache:
    """The cache of some rows, in the order asked: repeat one to fork a prompt, drop one to free it."""
    return KVCache(cache.k[:, rows], cache.v[:, rows], cache.length[rows])


def reset(cache: KVCache, rows: Int[Tensor, " N"]) -> KVCache:
    """The cache with some rows empty again; only their length changes."""
    return cache._replace(length=cache.length.index_fill(0, rows, 0))
