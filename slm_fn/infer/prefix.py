"""The prefix cache: keys and values of whole chunks by the hash of all ids up to their end, least recently used first.

Invariant: what is kept under a name was computed from exactly the ids in that name; there are never more tokens than
there is room for.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor


class Prefix(NamedTuple):
    """Chunks by name, the least recently used first; and for how many chunks there is room."""

    room: int
    chunks: Mapping[bytes, tuple[Tensor, Tensor]] = MappingProxyType({})


def names(ids: Sequence[int], chunk: int) -> tuple[bytes, ...]:
    """A name for each whole chunk of some ids: a hash of everything up to its end.

    Example:
        >>> a, b = names([1, 2, 3, 4, 5, 6, 7], 3), names([1, 2, 3, 0, 5, 6], 3)
        >>> len(a), a[0] == b[0], a[1] == b[1]
        (2, True, False)
    """
    told, hashed = [], hashlib.blake2b(digest_size=16)
    for start in range(0, len(ids) - chunk + 1, chunk):
        hashed.update(array("q", ids[start : start + chunk]).tobytes())
        told.append(hashed.digest())
    return tuple(told)


def find(prefix: Prefix, name: bytes) -> tuple[Prefix, tuple[Tensor, Tensor] | None]:
    """What is kept under a name, which is then the most recently used; None if nothing is."""
    found = prefix.chunks.get(name)
    return (prefix, None) if found is None else (_used(prefix, name, found), found)


def keep(prefix: Prefix, name: bytes, k: Tensor, v: Tensor) -> Prefix:
    """The cache with a copy of one chunk more, and without the least recently used where there is no room."""
    if prefix.room < 1 or name in prefix.chunks:
        return prefix
    return _used(prefix, name, (k.clone(), v.clone()))


def _used(prefix: Prefix, name: bytes, chunk: tuple[Tensor, Tensor]) -> Prefix:
    others = [(key, value) for key, value in prefix.chunks.items() if key != name]
    return prefix._replace(chunks=dict([*others[max(0, len(others) + 1 - prefix.room) :], (name, chunk)]))
