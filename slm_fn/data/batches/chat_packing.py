"""Several conversations in one row by best fit, so that few positions are padding.

Conversations are assigned from the longest down, each to the row where it leaves the least room: as
good as first fit (at most 11/9 of the fewest rows possible), and a bisection instead of a scan over
all rows. Every conversation begins with the start token, which opens its segment for
`lift.documents.isolate` and is never a counted target: so a row is an ordinary `ChatExample`, and
its loss is that of its conversations.

Invariant: each conversation is in exactly one row, uncut; rows depend on the examples, the limit
and the seed alone.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Sequence

from slm_fn.core import random
from slm_fn.core.random import Key
from slm_fn.data.batches.chat_batches import ChatExample


def pack(examples: Sequence[ChatExample], limit: int, seed: Key = 0) -> list[ChatExample]:
    """Conversations as rows of at most `limit` ids.

    Args:
        limit: ids per row; no example is longer (`chat_batches.fit` sees to it).
        seed: decides which of equally long conversations comes first, and the order in a row.

    Raises:
        ValueError: an example is longer than a row.

    Example:
        >>> a, b, c = (ChatExample([0] + [7] * n, [0] + [1] * n) for n in (3, 2, 1))
        >>> [list(row.ids) for row in pack([a, b, c], limit=6)]
        [[0, 7, 7, 7, 0, 7], [0, 7, 7]]
    """
    lengths = [len(example.ids) for example in examples]
    bins = best_fit(lengths, limit, seed)
    return [_concatenate([examples[item] for item in items]) for items in bins]


def best_fit(lengths: Sequence[int], limit: int, seed: Key = 0) -> list[list[int]]:
    """Bins of capacity `limit`, each as a list of indices into `lengths`.

    Raises:
        ValueError: an item is larger than a bin.

    References:
        D. S. Johnson, 1973 (best fit decreasing); arXiv 2404.10830 (packing training rows with it).
    """
    if lengths and max(lengths) > limit:
        raise ValueError(
            f"an example of {max(lengths)} ids does not fit a row of {limit}; shorten it first"
        )
    shuffled = [random.permute_index(seed, item, len(lengths)) for item in range(len(lengths))]
    bins: list[list[int]] = []
    bins_by_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # the keys of bins_by_room, sorted
    for item in sorted(shuffled, key=lambda item: -lengths[item]):
        index = bisect_left(rooms, lengths[item])
        if index == len(rooms):
            chosen = len(bins)
            room = limit
            bins.append([])
        else:
            room = rooms[index]
            chosen = bins_by_room[room].pop()
            if not bins_by_room[room]:
                del bins_by_room[room]
                del rooms[index]
        bins[chosen].append(item)
        room_left = room - lengths[item]
        if room_left not in bins_by_room:
            insort(rooms, room_left)
        bins_by_room.setdefault(room_left, []).append(chosen)
    return bins


def _concatenate(examples: Sequence[ChatExample]) -> ChatExample:
    ids = array("I")
    mask = array("B")
    for example in examples:
        ids.extend(example.ids)
        mask.extend(example.mask)
    return ChatExample(ids, mask)
