"""infer/prefix.py: names tell whole beginnings apart; copies are kept, the least recently used go first."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from slm_fn.infer import prefix
from slm_fn.infer.prefix import Prefix

ids = st.lists(st.integers(0, 2), max_size=12)


@given(ids, ids, st.integers(1, 4))
def test_names_are_equal_where_everything_before_is(a, b, chunk):
    first, second = prefix.names(a, chunk), prefix.names(b, chunk)
    assert len(first) == len(a) // chunk
    for i, (x, y) in enumerate(zip(first, second, strict=False), start=1):
        assert (x == y) == (a[: i * chunk] == b[: i * chunk])


def test_what_is_kept_is_a_copy_and_earlier_states_stay():
    k = torch.ones(1, 2, 1, 1)
    empty = Prefix(1)
    full = prefix.keep(empty, b"a", k, -k)
    k.zero_()
    assert prefix.find(full, b"a")[1][0].tolist() == [[[[1.0]], [[1.0]]]]
    assert prefix.find(empty, b"a")[1] is None
    assert list(prefix.keep(full, b"b", k, k).chunks) == [b"b"]
    assert list(full.chunks) == [b"a"]


@given(st.integers(0, 3), st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=30))
def test_the_least_recently_used_go_first(room, steps):
    known, recent, x = Prefix(room), [], torch.zeros(1, 1, 1, 1)
    for keeps, number in steps:
        name = bytes([number])
        if keeps and name not in recent:
            known = prefix.keep(known, name, x, x)
            recent = [*recent, name][-room:] if room else []
        elif not keeps:
            known, found = prefix.find(known, name)
            assert (found is not None) == (name in recent)
            recent = [*(one for one in recent if one != name), name] if found is not None else recent
        assert list(known.chunks) == recent
