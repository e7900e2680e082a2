"""Conversations and preference pairs in memory as ids and masks: fitted to the context, shuffled, padded into batches.

Invariant: what is padding is known by its position, never by its id; an answer is whole or it is not trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

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
        if any(not any(side.mask[1:]) for side in whole):
            dropped[NOTHING] += 1
        elif len(whole) == 2 and list(whole[0].ids) == list(whole[1].ids):
            dropped[SAME] += 1
        else:
            cuts = [_cut(side, limit) for side in whole]
            if any(_answer(side) - 2 <= max(cuts) for side in whole):
                dropped[TOO_LONG] += 1
            else:
                short = [_shorten(side, max(cuts)) for side in whole]
                kept.append(
                    short[0] if isinstance(example, ChatExample) else PairExample(short[0], short[1], example.reference)
                )
    return kept, dict(dropped)


def _without_tail(side: ChatExample) -> ChatExample:
    """Without what follows the last answer, from which nothing is learnt."""
    last = max((i for i, counted in enumerate(side.mask) if counted), default=-1)
    return ChatExample(side.ids[: last + 1], side.mask[: last + 1])


def _answer(side: ChatExample) -> int:
    """Where the last answer begins."""
    return max((i for i in range(1, len(side.mask)) if side.mask[i] and not side.mask[i - 1]), default=0)


def _turns(side: ChatExample) -> list[int]:
    """Where turns begin: after the start token, and after every end of turn, which is what an answer ends with."""
    return [1, *(i + 1 for i, token in enumerate(side.ids[:-1]) if token == side.ids[-1])]


def _cut(side: ChatExample, limit: int) -> int:
    """The first id to keep behind the start token, 1 when all fits."""
    excess, turns = len(side.ids) - limit, _turns(side)
    if excess <= 0:
        return 1
    cut = excess + 1 if excess + 1 in turns else excess + 2  # one more: the role's token of the turn stays
    assistant = side.ids[_answer(side) - 1]
    for turn, after in pairwise([*turns, len(side.ids)]):
        if turn <= cut < after and side.ids[turn] == assistant:
            cut = after  # an earlier answer goes as a whole
    return cut


def _shorten(side: ChatExample, cut: int) -> ChatExample:
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
    longest = max(len(example.ids) for example in examples) - 1
    length = -(-longest // MULTIPLE) * MULTIPLE
    tokens = torch.full((len(examples), length + 1), pad, dtype=torch.long)
    mask = torch.zeros(len(examples), length)
    for row, example in enumerate(examples):
        tokens[row, : len(example.ids)] = torch.as_tensor(example.ids, dtype=torch.long)
        mask[row, : len(example.ids) - 1] = torch.as_tensor(example.mask[1:], dtype=torch.float32)
    return LMBatch(tokens, mask)


def collate_pairs(examples: Sequence[PairExample], pad: int) -> PairBatch:
    """Chosen rows, rejected rows, and the reference's two numbers for each."""
    return PairBatch(
        collate([example.chosen for example in examples], pad),
        collate([example.rejected for example in examples], pad),
        torch.tensor([example.reference for example in examples], dtype=torch.float32),
    )


def chat_batch(
    examples: Sequence[ChatExample],
    seed: Key,
    position: int,
    batch_size: int,
    pad: int,
    rank: int = 0,
    world_size: int = 1,
) -> LMBatch:
    """The batch at a position: every conversation once per epoch, in an order that the seed and the epoch give.

    Raises:
        ValueError: no examples, no rows, or rows that do not divide among the ranks.
    """
    rows = places(seed, position, batch_size, len(examples), rank, world_size)
    return collate([examples[i] for _, i in rows], pad)


def pair_batch(
    examples: Sequence[PairExample],
    seed: Key,
    position: int,
    batch_size: int,
    pad: int,
    rank: int = 0,
    world_size: int = 1,
) -> PairBatch:
    """The same for pairs.

    Raises:
        ValueError: no examples, no rows, or rows that do not divide among the ranks.
    """
    rows = places(seed, position, batch_size, len(examples), rank, world_size)
    return collate_pairs([examples[i] for _, i in rows], pad)
