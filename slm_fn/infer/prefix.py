"""The prefix cache: keys and values of pieces of prompts, by a hash of all that was read up to their end and how.

Invariant: what is kept under a name was computed from exactly the ids and the cuts in that name; there are never more
tokens than there is room for.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor


class Piece(NamedTuple):
    """Part of a prompt that is read in one go: where it ends, and the name of all up to there."""

    end: int
    name: bytes


class Prefix(NamedTuple):
    """For how many tokens there is room; keys and values by name, the least recently used first."""

    room: int
    pieces: Mapping[bytes, tuple[Tensor, Tensor]] = MappingProxyType({})


def pieces(ids: Sequence[int], chunk: int, shared: int = 0) -> tuple[Piece, ...]:
    """The pieces that others may have too: whole chunks, and what is left of the first `shared` ids.

    A name tells ids and cuts: kernels may round a token differently in another company.

    Example:
        >>> a, b = pieces([1, 2, 3, 4, 5, 6, 7, 8], 3, shared=4), pieces([1, 2, 3, 4, 0, 0, 0], 3, shared=4)
        >>> [piece.end for piece in a]
        [3, 4, 7]
        >>> [x == y for x, y in zip(a, b)]
        [True, True, False]
    """
    whole = range(chunk, shared + 1, chunk)
    ends = [*whole, *([shared] if shared % chunk else []), *range(shared + chunk, len(ids) + 1, chunk)]
    told, hashed, begin = [], hashlib.blake2b(digest_size=16), 0
    for end in ends:
        hashed.update(array("q", [end, *ids[begin:end]]).tobytes())
        told.append(Piece(end, hashed.digest()))
        begin = end
    return tuple(told)


def find(prefix: Prefix, name: bytes) -> tuple[Prefix, tuple[Tensor, Tensor] | None]:
    """What is kept under a name, which is then the most recently used; None if nothing is."""
    held = dict(prefix.pieces)
    found = held.pop(name, None)
    return (prefix, None) if found is None else (prefix._replace(pieces={**held, name: found}), found)


def keep(prefix: Prefix, name: bytes, k: Tensor, v: Tensor) -> Prefix:
    """The cache with a copy of one piece more, and without the least recently used where there is no room."""
    num = k.shape[1]
    if num > prefix.room or name in prefix.pieces:
        return prefix
    held = dict(prefix.pieces)
    free = prefix.room - sum(kept.shape[1] for kept, _ in held.values())
    for oldest in prefix.pieces:
        if free >= num:
            break
        free += held.pop(oldest)[0].shape[1]
    return prefix._replace(pieces={**held, name: (k.clone(), v.clone())})
