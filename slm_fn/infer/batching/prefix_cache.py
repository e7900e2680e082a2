"""The prefix cache: keys and values of blocks of prompts, by a hash of everything up to their end.

Invariant: what is stored under a hash was computed from exactly the token ids and the block
boundaries in that hash; the cache never holds more tokens than its capacity.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class PrefixBlock(NamedTuple):
    """A block of a prompt, prefilled in one forward pass.

    Attributes:
        end: number of the prompt's tokens up to the end of the block.
        hash: identifies all tokens and block boundaries up to there.
    """

    end: int
    hash: bytes


class KeysValues(NamedTuple):
    """Keys and values of consecutive tokens of one sequence."""

    k: Float[Tensor, "L T K C"]
    v: Float[Tensor, "L T K C"]


class PrefixCache(NamedTuple):
    """Keys and values of blocks by their hash, the least recently used first.

    Attributes:
        capacity: the most tokens that are stored.
        entries: keys and values by the hash of their block.
    """

    capacity: int
    entries: Mapping[bytes, KeysValues] = MappingProxyType({})


def split_blocks(
    ids: Sequence[int],
    chunk: int,
    num_shared: int = 0,
) -> tuple[PrefixBlock, ...]:
    """Returns the blocks of a prompt that other prompts may begin with too.

    These are full chunks, and the rest of the first `num_shared` tokens. The block boundaries are
    part of a hash because kernels may round a token differently with other tokens in the pass.

    Args:
        ids: the prompt.
        chunk: tokens of a full block.
        num_shared: leading tokens that a block ends after.

    Example:
        >>> a = split_blocks([1, 2, 3, 4, 5, 6, 7, 8], 3, num_shared=4)
        >>> b = split_blocks([1, 2, 3, 4, 0, 0, 0], 3, num_shared=4)
        >>> [block.end for block in a]
        [3, 4, 7]
        >>> [x == y for x, y in zip(a, b)]
        [True, True, False]
    """
    ends = list(range(chunk, num_shared + 1, chunk))
    if num_shared % chunk:
        ends.append(num_shared)
    ends += range(num_shared + chunk, len(ids) + 1, chunk)
    blocks = []
    digest = hashlib.blake2b(digest_size=16)
    start = 0
    for end in ends:
        digest.update(array("q", [end, *ids[start:end]]).tobytes())
        blocks.append(PrefixBlock(end, digest.digest()))
        start = end
    return tuple(blocks)


def lookup(cache: PrefixCache, hash: bytes) -> tuple[PrefixCache, KeysValues | None]:
    """Returns the entry of a hash, and the cache in which it is the most recently used.

    Args:
        cache: the prefix cache.
        hash: of the block.

    Returns:
        The cache and the entry; the unchanged cache and None if there is no such entry.
    """
    entries = dict(cache.entries)
    entry = entries.pop(hash, None)
    if entry is None:
        return cache, None
    return cache._replace(entries={**entries, hash: entry}), entry


def insert(
    cache: PrefixCache,
    hash: bytes,
    block: KeysValues,
) -> PrefixCache:
    """Returns the cache with a copy of a block, without the least recently used where it is full.

    A block that is there already, or is larger than the cache, changes nothing.
    """
    num_tokens = block.k.shape[1]
    if num_tokens > cache.capacity or hash in cache.entries:
        return cache
    entries = dict(cache.entries)
    num_free = cache.capacity - sum(entry.k.shape[1] for entry in entries.values())
    for least_recent in cache.entries:
        if num_free >= num_tokens:
            break
        num_free += entries.pop(least_recent).k.shape[1]
    entries[hash] = KeysValues(block.k.clone(), block.v.clone())
    return cache._replace(entries=entries)
