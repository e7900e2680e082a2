"""The engine's state: the active sequences, their cache slots, and the prefix cache.

Invariant: decoding sequences have the first slots, without gaps; a sequence that is being prefilled
never has one of those, nor one of the slots that pad a decoding step, which are overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from slm_fn.infer.batching import batch_sizes
from slm_fn.infer.batching.prefix_cache import KeysValues, PrefixBlock, PrefixCache
from slm_fn.infer.constraints import Matcher
from slm_fn.infer.request import Logprob, Request
from slm_fn.infer.sampling import SequenceFilters
from slm_fn.nn.cache import InPlaceKVCache

NO_SLOT = -1

KEY_MULTIPLE = 64
"""The number of keys of a forward pass is padded to a multiple of this: softmax and weighted sums
over keys give the same bits where it is a multiple of 16, and a compiled step sees few shapes."""


class ActiveSequence(NamedTuple):
    """A request that is being prefilled or decoded.

    Attributes:
        key: of the request.
        request: what to generate.
        filters: its sampling filters.
        blocks: of its prompt, except the last.
        matcher: the state of its constraint.
        last_prefill: the engine's clock when it was last prefilled.
        slot: index in the cache, or `NO_SLOT`.
        num_filled: tokens whose keys and values are in the slot.
        num_cached: how many of those came from the prefix cache.
        prompt_logprobs: of the prompt, as far as it is prefilled.
        reply: new tokens; empty until the prompt is prefilled.
    """

    key: int
    request: Request
    filters: SequenceFilters
    blocks: tuple[PrefixBlock, ...] = ()
    matcher: Matcher | None = None
    last_prefill: int = 0
    slot: int = NO_SLOT
    num_filled: int = 0
    num_cached: int = 0
    prompt_logprobs: tuple[Logprob, ...] = ()
    reply: tuple[int, ...] = ()


class EngineState(NamedTuple):
    """What changes from step to step.

    The slots are written in place: a state must not be used after it was passed to a function that
    returned a new one.

    Attributes:
        slots: keys and values, one slot per sequence and padding.
        sequences: the active sequences.
        prefix_cache: keys and values of known beginnings of prompts.
        clock: counts prefills; the sequence that waited longest is prefilled next.
    """

    slots: InPlaceKVCache
    sequences: tuple[ActiveSequence, ...]
    prefix_cache: PrefixCache
    clock: int = 0


def replace_sequences(state: EngineState, changed: Sequence[ActiveSequence]) -> EngineState:
    """Returns the state with new versions of some of its sequences."""
    by_key = {sequence.key: sequence for sequence in changed}
    sequences = tuple(by_key.get(sequence.key, sequence) for sequence in state.sequences)
    return state._replace(sequences=sequences)


def get_sequence(state: EngineState, key: int) -> ActiveSequence:
    """Returns the sequence with a key, which must exist."""
    return next(sequence for sequence in state.sequences if sequence.key == key)


def assign_slot(state: EngineState, key: int) -> EngineState:
    """Returns the state with a slot for a sequence.

    The last free one, far from the decoding ones.
    """
    sequence = get_sequence(state, key)
    if sequence.slot != NO_SLOT:
        return state
    used = {each.slot for each in state.sequences}
    free = set(range(state.slots.k.shape[1])) - used
    return replace_sequences(state, [sequence._replace(slot=max(free))])


def read_slot(
    slots: InPlaceKVCache,
    slot: int,
    start: int,
    num_tokens: int,
) -> KeysValues:
    """Returns a view of the keys and values of consecutive positions of a slot."""
    end = start + num_tokens
    return KeysValues(slots.k[:, slot, start:end], slots.v[:, slot, start:end])


def write_slot(
    slots: InPlaceKVCache,
    slot: int,
    start: int,
    block: KeysValues,
) -> None:
    """Writes keys and values into a slot, from a position on."""
    target = read_slot(slots, slot, start, block.k.shape[1])
    target.k.copy_(block.k)
    target.v.copy_(block.v)


def compact_slots(state: EngineState, sizes: Sequence[int]) -> EngineState:
    """Returns the state with decoding sequences in the first slots, the others behind the padding.

    Args:
        state: sequences in any slots.
        sizes: the batch sizes of a decoding pass, ascending.
    """
    decoding = [each for each in state.sequences if each.reply]
    prefilling = [each for each in state.sequences if not each.reply and each.slot != NO_SLOT]
    num_slots = state.slots.k.shape[1]
    num_padded = batch_sizes.num_padded_rows(sizes, len(decoding))
    moves = _plan_moves(decoding, range(len(decoding)))
    moves += _plan_moves(prefilling, range(num_padded, num_slots))
    if not moves:
        return state
    contents = [read_slot(state.slots, each.slot, 0, each.num_filled) for each, _ in moves]
    if len(moves) > 1:  # a sequence may move to a slot that another one leaves
        contents = [KeysValues(k.clone(), v.clone()) for k, v in contents]
    for (_, slot), block in zip(moves, contents, strict=True):
        write_slot(state.slots, slot, 0, block)
    return replace_sequences(state, [sequence._replace(slot=slot) for sequence, slot in moves])


def _plan_moves(
    sequences: Sequence[ActiveSequence], allowed: range
) -> list[tuple[ActiveSequence, int]]:
    """The sequences outside the allowed slots, each with a free slot within them."""
    free = sorted(set(allowed) - {sequence.slot for sequence in sequences})
    return [(sequence, free.pop()) for sequence in sequences if sequence.slot not in allowed]


def round_up(count: int, multiple: int) -> int:
    """Returns the smallest multiple that is not below `count`.

    Example:
        >>> round_up(5, 4), round_up(8, 4)
        (8, 8)
    """
    return -(-count // multiple) * multiple
