"""Conversations and preference pairs as ids and masks: cut to the context, shuffled, padded.

Invariant: padding is known by its position, never by its id; a reply is trained on uncut or not at
all.
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
from slm_fn.core.types import LMBatch, PairBatch, check_pair_batch
from slm_fn.data.batches.stream import batch_items

MULTIPLE = 16
"""Rows are padded to a multiple of so many targets: kernels and compilers see few shapes."""

NOTHING_TO_LEARN = "nothing to learn"
REPLY_TOO_LONG = "answer too long for the context"
EQUAL_REPLIES = "chosen equals rejected"


class ChatExample(NamedTuple):
    """A rendered conversation.

    `mask[i]` is 1 where the assistant writes `ids[i]`, its end-of-turn token included.
    """

    ids: Sequence[int]
    mask: Sequence[int]


class PairExample(NamedTuple):
    """Two replies to one prompt; `reference` holds their reference log-probabilities, in nats."""

    chosen: ChatExample
    rejected: ChatExample
    reference: tuple[float, float] = (0.0, 0.0)


Example = TypeVar("Example", ChatExample, PairExample)
Batch = TypeVar("Batch", LMBatch, PairBatch)


def compact(example: ChatExample) -> ChatExample:
    """Stores an example's ids and mask as arrays: 5 bytes a token, where lists take 44.

    For 200,000 conversations lists would take 10 GB.

    Example:
        >>> compact(ChatExample([0, 3, 70000], [0, 0, 1]))
        ChatExample(ids=array('I', [0, 3, 70000]), mask=array('B', [0, 0, 1]))
    """
    return ChatExample(array("I", example.ids), array("B", example.mask))


def fit(examples: Sequence[ChatExample], limit: int) -> tuple[list[ChatExample], dict[str, int]]:
    """Shorten conversations to at most `limit` ids, from the left; drop what has nothing to learn.

    The start token stays, and so does the role token of the turn that is cut. A reply is never cut:
    an earlier reply that does not fit is removed, and a conversation whose last reply leaves no
    room for any of its prompt is dropped.

    Args:
        limit: ids per row; a context of T predictions has room for T + 1.

    Returns:
        The remaining examples, in order, and the number dropped for each reason.

    Example:
        >>> long = ChatExample([0, 3, 8, 9, 5, 4, 7, 5], [0, 0, 0, 0, 0, 0, 1, 1])
        >>> silent = ChatExample([0, 3, 5], [0, 0, 0])
        >>> kept, dropped = fit([long, silent], 7)
        >>> kept[0].ids, dropped
        ([0, 3, 9, 5, 4, 7, 5], {'nothing to learn': 1})
    """
    kept: list[ChatExample] = []
    dropped: Counter[str] = Counter()
    for example in examples:
        side = _without_tail(example)
        if 1 not in side.mask[1:]:
            dropped[NOTHING_TO_LEARN] += 1
            continue
        cut = _cut(side, limit)
        if cut >= _reply_start(side) - 2:
            dropped[REPLY_TOO_LONG] += 1
            continue
        kept.append(_shorten(side, cut))
    return kept, dict(dropped)


def fit_pairs(
    examples: Sequence[PairExample], limit: int
) -> tuple[list[PairExample], dict[str, int]]:
    """`fit` for preference pairs: both sides are cut at the same position, so prompts stay equal.

    A pair whose sides are equal is dropped as well.
    """
    kept: list[PairExample] = []
    dropped: Counter[str] = Counter()
    for example in examples:
        chosen = _without_tail(example.chosen)
        rejected = _without_tail(example.rejected)
        if 1 not in chosen.mask[1:] or 1 not in rejected.mask[1:]:
            dropped[NOTHING_TO_LEARN] += 1
            continue
        if list(chosen.ids) == list(rejected.ids):
            dropped[EQUAL_REPLIES] += 1
            continue
        cut = max(_cut(chosen, limit), _cut(rejected, limit))
        # The sides may differ from the first reply on, so all from there stays uncut.
        if cut >= min(chosen.mask.index(1), rejected.mask.index(1)) - 2:
            dropped[REPLY_TOO_LONG] += 1
            continue
        sides = _shorten(chosen, cut), _shorten(rejected, cut)
        kept.append(PairExample(*sides, example.reference))
    return kept, dict(dropped)


def _without_tail(side: ChatExample) -> ChatExample:
    """Without what follows the last reply: nothing is learned from it."""
    end = len(side.mask) - side.mask[::-1].index(1) if 1 in side.mask else 0
    return ChatExample(side.ids[:end], side.mask[:end])


def _reply_start(side: ChatExample) -> int:
    """Index of the last reply's first token, in an example that ends with the reply."""
    return len(side.mask) - side.mask[::-1].index(0)


def _turn_starts(side: ChatExample) -> list[int]:
    """Indices after the start token and after every end-of-turn token, which ends the example."""
    end_of_turn = side.ids[-1]
    starts = [1]
    for index, token in enumerate(side.ids[:-1]):
        if token == end_of_turn:
            starts.append(index + 1)
    return starts


def _cut(side: ChatExample, limit: int) -> int:
    """The first index to keep after the start token; 1 if everything fits."""
    excess = len(side.ids) - limit
    if excess <= 0:
        return 1
    starts = _turn_starts(side)
    cut = excess + 1
    if cut not in starts:
        cut += 1  # makes room for the role token of the turn that is cut
    assistant = side.ids[_reply_start(side) - 1]
    for start, next_start in pairwise([*starts, len(side.ids)]):
        if start <= cut < next_start and side.ids[start] == assistant:
            cut = next_start  # an earlier reply is removed completely
    return cut


def _shorten(side: ChatExample, cut: int) -> ChatExample:
    if cut == 1:
        return side
    turn = max(start for start in _turn_starts(side) if start <= cut)
    head = [0] if turn == cut else [0, turn]
    return ChatExample(
        [*(side.ids[index] for index in head), *side.ids[cut:]],
        [*(side.mask[index] for index in head), *side.mask[cut:]],
    )


def collate(examples: Sequence[ChatExample], pad: int) -> LMBatch:
    """Rows padded on the right to the longest, rounded up to `MULTIPLE` targets.

    Example:
        >>> collate([ChatExample([0, 3, 5, 4, 7, 5], [0, 0, 0, 0, 1, 1])], pad=1).mask.sum(1)
        tensor([2.])
    """
    length = _padded_length(max(len(example.ids) for example in examples))
    tokens = torch.full((len(examples), length + 1), pad, dtype=torch.long)
    mask = torch.zeros(len(examples), length)
    for row, example in enumerate(examples):
        ids = np.asarray(example.ids, dtype=np.int64)
        counted = np.asarray(example.mask[1:], dtype=np.float32)
        tokens[row, : len(ids)] = torch.from_numpy(ids)
        mask[row, : len(counted)] = torch.from_numpy(counted)
    return LMBatch(tokens, mask)


def _padded_length(num_ids: int) -> int:
    """Targets of a padded row whose longest example has so many ids."""
    return -(-(num_ids - 1) // MULTIPLE) * MULTIPLE


def collate_pairs(examples: Sequence[PairExample], pad: int) -> PairBatch:
    """Chosen rows, rejected rows, and the two reference log-probabilities of each."""
    references = [example.reference for example in examples]
    pairs = PairBatch(
        collate([example.chosen for example in examples], pad),
        collate([example.rejected for example in examples], pad),
        torch.tensor(references, dtype=torch.float32),
    )
    return check_pair_batch(pairs)


def batch(
    collate: Callable[[Sequence[Example]], Batch],
    examples: Sequence[Example],
    seed: Key,
    batch_size: int,
    position: int,
    rank: int = 0,
    world_size: int = 1,
) -> Batch:
    """The batch at a position: each example once per epoch, shuffled anew for each.

    Args:
        collate: `collate` or `collate_pairs`, with the id of padding bound.

    Raises:
        ValueError: no examples, or fewer rows than ranks.
    """
    items = batch_items(seed, position, batch_size, len(examples), rank, world_size)
    return collate([examples[item] for _, item in items])


class ChatStats(NamedTuple):
    """Counts and lengths of examples, in ids.

    `trained` is the share of targets that count, `padding` that of positions that are no targets.
    """

    examples: int
    replies: int
    tokens: int
    trained_tokens: int
    trained: float
    median_length: int
    length_of_90_percent: int
    longest: int
    padding: float


def measure(examples: Sequence[ChatExample], batch_size: int = 16, seed: Key = 0) -> ChatStats:
    """Counts, lengths, and the share of padding in an epoch of batches drawn with this seed.

    Raises:
        ValueError: no examples.

    Example:
        >>> stats = measure([ChatExample([0, 3, 9, 5, 4, 7, 5], [0, 0, 0, 0, 0, 1, 1])] * 10)
        >>> stats.trained_tokens, stats.longest, round(stats.padding, 2)
        (20, 7, 0.62)
    """
    lengths = [len(example.ids) for example in examples]
    num_positions = _num_positions(lengths, batch_size, seed)
    num_trained = sum(sum(example.mask[1:]) for example in examples)
    num_replies = sum(_num_replies(example) for example in examples)
    num_targets = sum(lengths) - len(lengths)
    ranked = sorted(lengths)
    last = len(ranked) - 1
    return ChatStats(
        examples=len(lengths),
        replies=num_replies,
        tokens=sum(lengths),
        trained_tokens=num_trained,
        trained=num_trained / num_targets,
        median_length=ranked[last // 2],
        length_of_90_percent=ranked[last * 9 // 10],
        longest=ranked[-1],
        padding=1 - num_targets / num_positions,
    )


def _num_positions(lengths: Sequence[int], batch_size: int, seed: Key) -> int:
    """Targets and padding of all batches of the first epoch."""
    num_positions = 0
    num_batches = -(-len(lengths) // batch_size)
    for position in range(num_batches):
        items = batch_items(seed, position, batch_size, len(lengths))
        first_epoch = [lengths[item] for epoch, item in items if epoch == 0]
        num_positions += len(first_epoch) * _padded_length(max(first_epoch))
    return num_positions


def _num_replies(example: ChatExample) -> int:
    return sum(after > before for before, after in pairwise(example.mask))


def summarize(stats: ChatStats) -> str:
    """Describes the statistics of chat examples in one line of text."""
    return (
        f"{stats.examples:,} rows, {stats.tokens:,} tokens, {stats.replies:,} replies; "
        f"{stats.trained:.1%} trained, {stats.padding:.1%} padding; "
        f"lengths {stats.median_length}, {stats.length_of_90_percent}, {stats.longest} "
        "(median, 90 %, longest)"
    )
