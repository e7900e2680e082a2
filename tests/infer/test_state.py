"""infer/state.py: rows move together with what is in their slots, and only where they may be."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm_fn.infer import state as states
from slm_fn.infer.prefix import Prefix
from slm_fn.infer.request import Request
from slm_fn.infer.state import EngineState, Row
from slm_fn.nn.cache import Slots


def holding(rows, num_slots):
    """A state whose slots hold the key of their row."""
    k = torch.zeros(2, num_slots, 4, 1, 2)
    for row in rows:
        k[:, row.slot, : row.filled] = row.key
    return EngineState(Slots(k, -k, torch.zeros(num_slots, dtype=torch.long)), tuple(rows), Prefix(0))


def test_two_rows_change_places():
    rows = [Row(1, Request((1,)), slot=2, filled=3, reply=(9,)), Row(2, Request((1, 1)), slot=0, filled=4)]
    settled = states.settled(holding(rows, 3), 1)
    assert [row.slot for row in settled.rows] == [0, 2]
    assert settled.slots.k[0, :, 0, 0, 0].tolist() == [1, 0, 2]


@given(
    st.permutations(range(8)),
    st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=5),
    st.sampled_from([1, 2, 4]),
)
def test_rows_have_their_places_and_keep_what_they_have(slots, drawn, multiple):
    rows = [
        Row(key + 1, Request((1,) * 5), slot=slot, filled=filled, reply=(7,) if writes else ())
        for key, (slot, (writes, filled)) in enumerate(zip(slots, drawn, strict=False))
    ]
    after = states.settled(holding(rows, 8), multiple)
    writing = sorted(row.slot for row in after.rows if row.reply)
    assert writing == list(range(len(writing)))
    assert all(row.slot >= states.up(len(writing), multiple) for row in after.rows if not row.reply)
    assert len({row.slot for row in after.rows}) == len(rows)
    for row in after.rows:
        k, v = states.part(after.slots, row.slot, 0, row.filled)
        assert bool((k == row.key).all())
        assert bool((v == -row.key).all())


@pytest.mark.parametrize("slots", [(-1, 3, 1), (2, 3, 0)])
def test_a_row_takes_the_last_slot_that_is_free(slots):
    rows = tuple(Row(key, Request((1,)), slot=slot) for key, slot in enumerate(slots))
    found = states.seated(EngineState(holding([], 4).slots, rows, Prefix(0)), 0)
    assert states.row_of(found, 0).slot == 2
