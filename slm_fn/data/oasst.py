"""OASST: message trees written flat, one row a message; the best path of each tree, or its ranked replies as pairs.

Rows of a tree need not stand together: up to `OPEN` trees are held at a time, and a row that comes later is counted.
Ranks are the people's order among siblings, 0 the best (arXiv 2304.07327). Where siblings are not ranked, the one that
most turns follow is taken, the first of equals.

Invariant: memory holds `OPEN` trees and the ids of the closed ones, however many rows there are.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from slm_fn.data.sources import Conversation, Message, Preference
from slm_fn.data.turns import KEPT, Refused, tidy

Count = Callable[[str], None]
OPEN = 1000
STOPPED = frozenset({"aborted_low_grade", "halted_by_moderator"})
REMOVED = f"{KEPT}a message of the tree was deleted or failed its review"
ORPHAN = f"{KEPT}a message answers none of its tree"
BESIDE = f"{KEPT}a message of the tree is not on the best path"


class Node(NamedTuple):
    """One message: `rank` is infinite where people did not rank it."""

    name: str
    parent: str | None
    role: str
    text: str
    rank: float


def conversations(rows: Iterable[Any], count: Count, languages: Collection[str] = ()) -> Iterator[Conversation]:
    """The best path of each tree: from the root, always the child ranked best, down to its last reply.

    Args:
        languages: keep trees whose root is in one of these; all where there are none.
    """
    raise NotImplementedError


def preferences(rows: Iterable[Any], count: Count, languages: Collection[str] = ()) -> Iterator[Preference]:
    """For each user turn with ranked replies the best against each ranked lower, behind the path that leads there."""
    raise NotImplementedError
