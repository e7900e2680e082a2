"""Several conversations in one row: best fit, so that few targets are padding; read apart by `lift.documents.isolate`.

Conversations are placed from the longest down, each into the row where it leaves the least room: as good as first fit
(at most 11/9 of the fewest rows possible), and found by bisection instead of a walk over all rows. Every conversation
begins with the start token, which opens its segment, and that token is no target that counts: so a row is an ordinary
`ChatExample`, and its loss is that of its conversations.

Invariant: each conversation stands whole in exactly one row, and rows depend on the examples, the limit and the seed.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Sequence

from slm_fn.core import random
from slm_fn.core.random import Key
from slm_fn.data.pairs import ChatExample


def pack(examples: Sequence[ChatExample], limit: int, seed: Key = 0) -> list[ChatExample]:
    """Conversations as rows of at most `limit` ids.

    Args:
        limit: ids per row; no example is longer (`pairs.fit` sees to it).
        seed: which of equally long conversations comes first, and the order of those in a row.

    Raises:
        ValueError: an example that is longer than a row.

    Example:
        >>> a, b, c = (ChatExample([0] + [7] * n, [0] + [1] * n) for n in (3, 2, 1))
        >>> [list(row.ids) for row in pack([a, b, c], limit=6)]
        [[0, 7, 7, 7, 0, 7], [0, 7, 7]]
    """
    return [_joined([examples[i] for i in row]) for row in best_fit([len(e.ids) for e in examples], limit, seed)]


def best_fit(lengths: Sequence[int], limit: int, seed: Key = 0) -> list[list[int]]:
    """Which items share a bin of size `limit`: indexes into `lengths`.

    Raises:
        ValueError: an item that is larger than a bin.

    References: D. S. Johnson, 1973 (best fit decreasing); arXiv 2404.10830 (packing training rows with it).
    """
    if lengths and max(lengths) > limit:
        raise ValueError(f"an example of {max(lengths)} ids does not fit a row of {limit}; shorten it first")
    shuffled = [random.permute(seed, i, len(lengths)) for i in range(len(lengths))]
    bins: list[list[int]] = []
    waiting: dict[int, list[int]] = {}  # the bins that have so much room
    rooms: list[int] = []  # in which there are any, sorted
    for item in sorted(shuffled, key=lambda i: -lengths[i]):
        place = bisect_left(rooms, lengths[item])
        if place == len(rooms):
            chosen, room = len(bins), limit
            bins.append([])
        else:
            room = rooms[place]
            chosen = waiting[room].pop()
            if not waiting[room]:
                del waiting[room], rooms[place]
        bins[chosen].append(item)
        left = room - lengths[item]
        if left not in waiting:
            insort(rooms, left)
        waiting.setdefault(left, []).append(chosen)
    return bins


def _joined(examples: Sequence[ChatExample]) -> ChatExample:
    ids, mask = array("I"), array("B")
    for example in examples:
        ids.extend(example.ids)
        mask.extend(example.mask)
    return ChatExample(ids, mask)
