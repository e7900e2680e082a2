"""What is held out for validation: a hash of the text decides, for whole documents or for blocks of 16 Ki characters.

A text's hash depends on nothing but the text: adding documents moves no other, and identical texts go the same way. Of
a document that comes in parts the first part decides, or with `block` every block for itself. Blocks are cut where
`formats.pieces` cuts: after a newline, or before a space, that no split pattern of a tokenizer crosses. The start token
marks a boundary: it stands before every document, and before every block that does not follow its predecessor in the
same split.

Invariant: the decision is a function of the documents in their order alone, so packing can stop and go on anywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from slm_fn.data import formats
from slm_fn.data.sources import Document

BLOCK = 1 << 14
"""Characters in the longest block."""

SplitBy = Literal["document", "block"]


def held_out(text: str, fraction: float) -> bool:
    """Whether a text belongs to the held-out share, by a hash of it.

    Example:
        >>> held_out("macbeth", 0.0), held_out("macbeth", 1.0)
        (False, True)
    """
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=7).digest()
    return int.from_bytes(digest, "big") < fraction * (1 << 56)


class HeldOut(NamedTuple):
    """What is held out: the documents named, or where none is a share of the text, by document or by block."""

    fraction: float = 0.0
    names: frozenset[str] = frozenset()
    by: SplitBy = "document"


class Last(msgspec.Struct, frozen=True):
    """The piece before: whose part of which document it was, and where it went."""

    name: str = ""
    part: int = -1
    is_val: bool = False


class Plan(NamedTuple):
    """For each piece whether a start token precedes it and whether it is held out; and the last piece."""

    starts: np.ndarray
    is_val: np.ndarray
    last: Last


def plan(rule: HeldOut, last: Last, pieces: Sequence[Document]) -> Plan:
    """Where pieces go that follow `last`.

    Example:
        >>> found = plan(HeldOut(), Last(), [Document("a", "x"), Document("a", "y", 1), Document("b", "z")])
        >>> found.starts.tolist(), found.is_val.tolist()
        ([True, False, True], [False, False, False])
    """
    starts, is_val = np.ones(len(pieces), dtype=bool), np.zeros(len(pieces), dtype=bool)
    for i, (name, text, part) in enumerate(pieces):
        follows = part > 0 and name == last.name and part == last.part + 1
        if rule.names:
            val = name in rule.names
        elif follows and rule.by == "document":
            val = last.is_val
        else:
            val = rule.fraction > 0 and held_out(text, rule.fraction)
        starts[i], is_val[i] = not (follows and val == last.is_val), val
        last = Last(name, part, val)
    return Plan(starts, is_val, last)


def blocks(documents: Iterable[Document]) -> Iterator[Document]:
    """Documents cut into blocks, as parts numbered through each document.

    Example:
        >>> line = "x" * (BLOCK - 1) + chr(10)
        >>> [(len(block.text), block.part) for block in blocks([Document("a", line * 3)])]
        [(16384, 0), (16384, 1), (16384, 2)]
    """
    before, number = Last(), 0
    for name, text, part in documents:
        if not (part > 0 and name == before.name and part == before.part + 1):
            number = 0
        before = Last(name, part)
        for piece in formats.pieces([text], BLOCK):
            yield Document(name, piece, number)
            number += 1
