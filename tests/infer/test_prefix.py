"""infer/prefix.py: names tell whole beginnings apart; copies are kept, the least recently used go first."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from slm_fn.infer import prefix
from slm_fn.infer.prefix import Prefix

ids = st.lists(st.integers(0, 2), max_size=12)


@given(ids, ids, st.integers(1, 4), st.integers(0, 12), st.integers(0, 12))
def test_names_are_equal_where_everything_before_is_and_was_read_alike(a, b, chunk, first, second):
    one, two = prefix.pieces(a, chunk, min(first, len(a))), prefix.pieces(b, chunk, min(second, len(b)))
    for i, (x, y) in enumerate(zip(one, two, strict=False), start=1):
        alike = [piece.end for piece in one[:i]] == [piece.end for piece in two[:i]]
        assert (x.name == y.name) == (alike and a[: x.end] == b[: y.end])


def test_the_same_ids_read_in_other_pieces_have_other_names():
    ids, chunk = [1, 2, 3, 4, 5, 6, 7, 8], 3
    one, two = prefix.pieces(ids, chunk, 2), prefix.pieces(ids, chunk, 5)
    assert [piece.end for piece in one] == [2, 5, 8]
    assert [piece.end for piece in two] == [3, 5, 8]
    assert not {piece.name for piece in one} & {piece.name for piece in two}


@given(ids, st.integers(1, 4), st.integers(0, 12))
def test_pieces_are_whole_chunks_and_what_is_left_of_what_is_shared(a, chunk, shared):
    shared = min(shared, len(a))
    ends = [0, *(piece.end for piece in prefix.pieces(a, chunk, shared))]
    sizes = [end - begin for begin, end in pairwise(ends)]
    assert shared in ends
    assert all(size == chunk or end == shared for size, end in zip(sizes, ends[1:], strict=True))
    assert max(sizes, default=0) <= chunk
    assert len(a) - ends[-1] < chunk


def test_what_is_kept_is_a_copy_and_earlier_states_stay():
    k = torch.ones(1, 2, 1, 1)
    empty = Prefix(2)
    full = prefix.keep(empty, b"a", k, -k)
    k.zero_()
    assert prefix.find(full, b"a")[1][0].tolist() == [[[[1.0]], [[1.0]]]]
    assert prefix.find(empty, b"a")[1] is None
    assert list(prefix.keep(full, b"b", k, k).pieces) == [b"b"]
    assert list(full.pieces) == [b"a"]


@given(st.integers(0, 6), st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=30))
def test_the_least_recently_used_go_first(room, steps):
    known, recent = Prefix(room), []
    for keeps, number in steps:
        name, size = bytes([number]), 1 + number % 3
        if keeps and name not in recent:
            x = torch.zeros(1, size, 1, 1)
            known = prefix.keep(known, name, x, x)
            if size <= room:
                recent.append(name)
                while sum(1 + one[0] % 3 for one in recent) > room:
                    del recent[0]
        elif not keeps:
            known, found = prefix.find(known, name)
            assert (found is not None) == (name in recent)
            recent = [*(one for one in recent if one != name), name] if found is not None else recent
        assert list(known.pieces) == recent
