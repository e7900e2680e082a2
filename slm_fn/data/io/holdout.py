"""What is held out for validation: a hash of each text decides, for documents or for blocks.

A text's hash depends on nothing but the text: adding documents moves no other, and identical texts
fall in the same split. The first chunk of a document decides for all of them; with `block`, every
block of up to 16 Ki characters decides for itself. Blocks are cut where `text_files.split_chunks`
cuts: after a newline or before a space, which no split pattern of a tokenizer crosses. The start
token marks a boundary: it precedes every document, and every block that does not follow its
predecessor in the same split.

Invariant: the decision depends on the documents in their order alone, so packing can stop and
resume anywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from jaxtyping import Bool

from slm_fn.data.io import text_files
from slm_fn.data.io.documents import Document

BLOCK_CHARS = 1 << 14
"""Characters in the longest block."""

SplitBy = Literal["document", "block"]


class HoldoutRule(NamedTuple):
    """What is held out: the documents in `names`, or, without names, a share of the text.

    Attributes:
        fraction: the share of the text to hold out, in [0, 1].
        names: the names of the documents to hold out.
        split_by: whether the share is taken by document or by block.
    """

    fraction: float = 0.0
    names: frozenset[str] = frozenset()
    split_by: SplitBy = "document"


class PreviousChunk(msgspec.Struct, frozen=True):
    """The chunk before the next one: its document, its index there, and whether it is held out."""

    name: str = ""
    chunk_index: int = msgspec.field(default=-1, name="part")
    is_val: bool = False

    def is_followed_by(self, document: Document) -> bool:
        """Whether a chunk continues the document of this one."""
        if document.chunk_index == 0 or document.name != self.name:
            return False
        return document.chunk_index == self.chunk_index + 1


class SplitPlan(NamedTuple):
    """For each chunk whether a start token precedes it and whether it is held out.

    `previous` is the last of the chunks, from which the next plan goes on.
    """

    starts: Bool[np.ndarray, " N"]
    is_val: Bool[np.ndarray, " N"]
    previous: PreviousChunk


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a text belongs to the held-out share, by a hash of it.

    Args:
        fraction: the share that is held out, in [0, 1].

    Example:
        >>> is_held_out("macbeth", 0.0), is_held_out("macbeth", 1.0)
        (False, True)
    """
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=7).digest()
    return int.from_bytes(digest, "big") < fraction * (1 << 56)


def plan_splits(
    rule: HoldoutRule, previous: PreviousChunk, chunks: Sequence[Document]
) -> SplitPlan:
    """Decide for chunks that follow `previous` which are held out and where start tokens go.

    Example:
        >>> chunks = [Document("a", "x"), Document("a", "y", 1), Document("b", "z")]
        >>> plan = plan_splits(HoldoutRule(), PreviousChunk(), chunks)
        >>> plan.starts.tolist(), plan.is_val.tolist()
        ([True, False, True], [False, False, False])
    """
    starts = np.ones(len(chunks), dtype=bool)
    is_val = np.zeros(len(chunks), dtype=bool)
    for i, chunk in enumerate(chunks):
        follows = previous.is_followed_by(chunk)
        if rule.names:
            chunk_is_val = chunk.name in rule.names
        elif follows and rule.split_by == "document":
            chunk_is_val = previous.is_val
        else:
            chunk_is_val = rule.fraction > 0 and is_held_out(chunk.text, rule.fraction)
        starts[i] = not (follows and chunk_is_val == previous.is_val)
        is_val[i] = chunk_is_val
        previous = PreviousChunk(chunk.name, chunk.chunk_index, chunk_is_val)
    return SplitPlan(starts, is_val, previous)


def split_blocks(documents: Iterable[Document]) -> Iterator[Document]:
    """Cut documents into blocks, as chunks numbered through each document.

    Example:
        >>> line = "x" * (BLOCK_CHARS - 1) + chr(10)
        >>> blocks = split_blocks([Document("a", line * 3)])
        >>> [(len(block.text), block.chunk_index) for block in blocks]
        [(16384, 0), (16384, 1), (16384, 2)]
    """
    previous = PreviousChunk()
    block_index = 0
    for document in documents:
        if not previous.is_followed_by(document):
            block_index = 0
        previous = PreviousChunk(document.name, document.chunk_index)
        for block in text_files.split_chunks([document.text], BLOCK_CHARS):
            yield Document(document.name, block, block_index)
            block_index += 1
