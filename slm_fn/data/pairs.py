"""Conversations and preference pairs in memory as ids and masks: fitted to the context, shuffled, padded into batches.

Invariant: what is padding is known by its position, never by its id; an answer is whole or it is not trained on.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from slm_fn.core.random import Key
from slm_fn.core.types import LMBatch, PairBatch
from slm_fn.data.stream import places

MULTIPLE = 16
"""Rows are padded to this many targets or a multiple of it: few shapes for kernels and compilers to meet."""

NOTHING, TOO_LONG, SAME = "nothing to learn", "answer too long for the context", "chosen equals rejected"


class ChatExample(NamedTuple):
    """A rendered conversation; `mask[i]` is 1 where `ids[i]` is written by the assistant, its end of turn included."""

    ids: Sequence[int]
    mask: Sequence[int]


class PairExample(NamedTuple):
    """Two answers to one prompt; `reference` holds their log-probabilities under the reference model, in nats."""

    chosen: ChatExample
    rejected: ChatExample
    reference: tuple[float, float] = (0.0, 0.0)


Example = TypeVar("Example", ChatExample, PairExample)
Batch = TypeVar("Batch", LMBatch, PairBatch)


def compact(example: ChatExample) -> ChatExample:
    """The same in 5 bytes a token; lists of numbers take 44, which for 200,000 conversations is 10 GB.

    Example:
        >>> compact(ChatExample([0, 3, 70000], [0, 0, 1]))
        ChatExample(ids=array('I', [0, 3, 70000]), mask=array('B', [0, 0, 1]))
    """
    return ChatExample(array("I", example.ids), array("B", example.mask))


def fit(examples: Sequence[Example], limit: int) -> tuple[list[Example], dict[str, int]]:
    """Shorten examples to at most `limit` ids, prompts from the left; drop those with nothing left to learn.

    The start token stays, and so does the role's token of the turn in which the cut falls. An answer is never cut: an
    earlier one that does not fit goes as a whole, and an example whose last answer leaves no room for any of its prompt
    is dropped. Both sides of a pair are cut at the same place, so their prompts stay equal.

    Args:
        limit: ids per row; a context of T predictions has room for T + 1.

    Returns:
        What is kept, in order, and how many were dropped for each reason.

    Example:
        >>> long = ChatExample([0, 3, 8, 9, 5, 4, 7, 5], [0, 0, 0, 0, 0, 0, 1, 1])
        >>> silent = ChatExample([0, 3, 5], [0, 0, 0])
        >>> fit([long, silent], 7)
        ([ChatExample(ids=[0, 3, 9, 5, 4, 7, 5], mask=[0, 0, 0, 0, 0, 1, 1])], {'nothing to learn': 1})
    """
    kept: list[Example] = []
    dropped: Counter[str] = Counter()
    for example in examples:
        sides = [example] if isinstance(example, ChatExample) else [example.chosen, example.rejected]
        whole = [_without_tail(side) for side in sides]
        if any(1 not in side.mask[1:] for side in whole):
            dropped[NOTHING] += 1
        elif len(whole) == 2 and list(whole[0].ids) == list(whole[1].ids):
            dropped[SAME] += 1
        else:
            cut = max(_cut(side, limit) for side in whole)
            # Where what must stay whole begins: the last answer, or all in which the sides of a pair differ.
            answers = [_answer(side) if len(whole) == 1 else side.mask.index(1) for side in whole]
            if cut >= min(answers) - 2:
                dropped[TOO_LONG] += 1
            else:
                short = [_shorten(side, cut) for side in whole]
                kept.append(
                    short[0] if isinstance(example, ChatExample) else PairExample(short[0], short[1], example.reference)
                )
    return kept, dict(dropped)


def _without_tail(side: ChatExample) -> ChatExample:
    """Without what follows the last answer, from which nothing is learnt."""
    end = len(side.mask) - side.mask[::-1].index(1) if 1 in side.mask else 0
    return ChatExample(side.ids[:end], side.mask[:end])


def _answer(side: ChatExample) -> int:
    """Where the last answer begins, in an example that ends with it."""
    return len(side.mask) - side.mask[::-1].index(0)


def _turns(side: ChatExample) -> list[int]:
    """Where turns begin: after the start token, and after every end of turn, which is what an answer ends with."""
    return [1, *(i + 1 for i, token in enumerate(side.ids[:-1]) if token == side.ids[-1])]


def _cut(side: ChatExample, limit: int) -> int:
    """The first id to keep behind the start token, 1 when all fits."""
    excess = len(side.ids) - limit
    if excess <= 0:
        return 1
    turns = _turns(side)
    cut = excess + 1 if excess + 1 in turns else excess + 2  # one more: the role's token of the turn stays
    assistant = side.ids[_answer(side) - 1]
    for turn, after in pairwise([*turns, len(side.ids)]):
        if turn <= cut < after and side.ids[turn] == assistant:
            cut = after  # an earlier answer goes as a whole
    return cut


def _shorten(side: ChatExample, cut: int) -> ChatExample:
    if cut == 1:
        return side
    turn = max(begin for begin in _turns(side) if begin <= cut)
    head = [0] if turn == cut else [0, turn]
    return ChatExample(
        [*(side.ids[i] for i in head), *side.ids[cut:]], [*(side.mask[i] for i in head), *side.mask[cut:]]
    )


def collate(examples: Sequence[ChatExample], pad: int) -> LMBatch:
    """Rows padded on the right to the longest, rounded up to `MULTIPLE` targets.

    Example:
        >>> collate([ChatExample([0, 3, 5, 4, 7, 5], [0, 0, 0, 0, 1, 1])], pad=1).mask.sum(1).tolist()
        [2.0]
    """
    length = _width(max(len(example.ids) for example in examples))
    tokens = torch.full((len(examples), length + 1), pad, dtype=torch.long)
    mask = torch.zeros(len(examples), length)
    for row, example in enumerate(examples):
        tokens[row, : len(example.ids)] = torch.from_numpy(np.asarray(example.ids, dtype=np.int64))
        mask[row, : len(example.ids) - 1] = torch.from_numpy(np.asarray(example.mask[1:], dtype=np.float32))
    return LMBatch(tokens, mask)


def _width(longest: int) -> int:
    """Targets of a padded row whose longest example has so many ids."""
    return -(-(longest - 1) // MULTIPLE) * MULTIPLE


def collate_pairs(examples: Sequence[PairExample], pad: int) -> PairBatch:
    """Chosen rows, rejected rows, and the reference's two numbers for each."""
    return PairBatch(
        collate([example.chosen for example in examples], pad),
        collate([example.rejected for example in examples], pad),
        torch.tensor([example.reference for example in examples], dtype=torch.float32),
    )


def batch(
    collate: Callable[[Sequence[Example], int], Batch],
    examples: Sequence[Example],
    pad: int,
    seed: Key,
    batch_size: int,
    position: int,
    rank: int = 0,
    world_size: int = 1,
) -> Batch:
    """The batch at a position, of conversations or pairs: each once per epoch, in an order of its own for each.

    Raises:
        ValueError: no examples, or fewer rows than ranks.
    """
    rows = places(seed, position, batch_size, len(examples), rank, world_size)
    return collate([examples[i] for _, i in rows], pad)


class Figures(NamedTuple):
    """What examples hold: lengths in ids at three ranks, `padding` and `trained` as shares of what they are part of."""

    examples: int
    replies: int
    tokens: int
    trained_tokens: int
    trained: float
    median_length: int
    length_of_90_percent: int
    longest: int
    padding: float


def report(examples: Sequence[ChatExample], batch_size: int = 16, seed: Key = 0) -> Figures:
    """Counts, lengths and the share of padding in an epoch of batches drawn with this seed.

    Raises:
        ValueError: no examples.

    Example:
        >>> found = report([ChatExample([0, 3, 9, 5, 4, 7, 5], [0, 0, 0, 0, 0, 1, 1])] * 10)
        >>> found.trained_tokens, found.longest, round(found.padding, 2)
        (20, 7, 0.62)
    """
    lengths = [len(example.ids) for example in examples]
    ranked, last = sorted(lengths), len(lengths) - 1
    cells = 0
    for position in range(-(-len(lengths) // batch_size)):
        rows = [i for epoch, i in places(seed, position, batch_size, len(lengths)) if epoch == 0]
        cells += len(rows) * _width(max(lengths[i] for i in rows))
    trained = sum(sum(example.mask[1:]) for example in examples)
    replies = sum(sum(b > a for a, b in pairwise(example.mask)) for example in examples)
    targets = sum(lengths) - len(lengths)
    return Figures(
        len(lengths),
        replies,
        sum(lengths),
        trained,
        trained / targets,
        ranked[last // 2],
        ranked[last * 9 // 10],
        ranked[-1],
        1 - targets / cells,
    )


def told(found: Figures) -> str:
    """The figures in a line for a person."""
    lengths = f"{found.median_length}, {found.length_of_90_percent}, {found.longest}"
    return (
        f"{found.examples:,} rows, {found.tokens:,} tokens, {found.replies:,} replies; {found.trained:.1%} trained, "
        f"{found.padding:.1%} padding; lengths {lengths} (median, 90 %, longest)"
    )
