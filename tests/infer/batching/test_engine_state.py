"""infer/batching/engine_state.py: sequences keep their keys and values when they change slots."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm_fn.infer import sampling
from slm_fn.infer.batching import batch_sizes, engine_state
from slm_fn.infer.batching.engine_state import NO_SLOT, ActiveSequence, EngineState
from slm_fn.infer.batching.prefix_cache import PrefixCache
from slm_fn.infer.request import Request
from slm_fn.nn.cache import InPlaceKVCache


def make_sequence(key, num_prompt_tokens, **fields):
    request = Request((1,) * num_prompt_tokens)
    return ActiveSequence(key, request, sampling.prepare(request.sampling), **fields)


def make_state(sequences, num_slots):
    """A state whose filled slots hold the key of their sequence."""
    k = torch.zeros(2, num_slots, 4, 1, 2)
    for sequence in sequences:
        k[:, sequence.slot, : sequence.num_filled] = sequence.key
    lengths = torch.zeros(num_slots, dtype=torch.long)
    return EngineState(InPlaceKVCache(k, -k, lengths), tuple(sequences), PrefixCache(0))


def test_two_sequences_exchange_their_slots():
    sequences = [
        make_sequence(1, 1, slot=2, num_filled=3, reply=(9,)),
        make_sequence(2, 2, slot=0, num_filled=4),
    ]
    compacted = engine_state.compact_slots(make_state(sequences, 3), (1, 2, 3))
    assert [sequence.slot for sequence in compacted.sequences] == [0, 2]
    assert compacted.slots.k[0, :, 0, 0, 0].tolist() == [1, 0, 2]


SIZES = [(1, 2, 3, 4, 5), (2, 4, 6), (4, 8), (1,), (4,), (3, 7)]


@given(
    st.permutations(range(8)),
    st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=5),
    st.sampled_from(SIZES),
)
def test_compact_slots_moves_sequences_with_their_keys_and_values(slots, drawn, sizes):
    num_slots = max(8, batch_sizes.num_slots(sizes, 5))
    sequences = []
    for slot, (is_decoding, num_filled) in zip(slots, drawn, strict=False):
        reply = (7,) if is_decoding else ()
        key = len(sequences) + 1
        sequences.append(make_sequence(key, 5, slot=slot, num_filled=num_filled, reply=reply))
    after = engine_state.compact_slots(make_state(sequences, num_slots), sizes)
    decoding = sorted(sequence.slot for sequence in after.sequences if sequence.reply)
    assert decoding == list(range(len(decoding)))
    num_padded = batch_sizes.num_padded_rows(sizes, len(decoding))
    assert all(each.slot >= num_padded for each in after.sequences if not each.reply)
    assert len({sequence.slot for sequence in after.sequences}) == len(sequences)
    for sequence in after.sequences:
        k, v = engine_state.read_slot(after.slots, sequence.slot, 0, sequence.num_filled)
        assert bool((k == sequence.key).all())
        assert bool((v == -sequence.key).all())


@pytest.mark.parametrize("slots", [(NO_SLOT, 3, 1), (2, 3, 0)])
def test_a_sequence_is_assigned_the_last_free_slot(slots):
    sequences = tuple(make_sequence(key, 1, slot=slot) for key, slot in enumerate(slots))
    state = make_state([], 4)._replace(sequences=sequences)
    state = engine_state.assign_slot(state, 0)
    assert engine_state.get_sequence(state, 0).slot == 2
