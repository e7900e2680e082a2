"""infer/batching/prefix_cache.py: hashes identify prefixes; the least recently used go."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from slm_fn.infer.batching import prefix_cache
from slm_fn.infer.batching.prefix_cache import KeysValues, PrefixCache

ids = st.lists(st.integers(0, 2), max_size=12)


@given(ids, ids, st.integers(1, 4), st.integers(0, 12), st.integers(0, 12))
def test_hashes_are_equal_where_ids_and_boundaries_are(a, b, chunk, first, second):
    one, two = (
        prefix_cache.split_blocks(a, chunk, min(first, len(a))),
        prefix_cache.split_blocks(b, chunk, min(second, len(b))),
    )
    for i, (x, y) in enumerate(zip(one, two, strict=False), start=1):
        is_equal = [block.end for block in one[:i]] == [block.end for block in two[:i]]
        assert (x.hash == y.hash) == (is_equal and a[: x.end] == b[: y.end])


def test_other_block_boundaries_have_other_hashes():
    ids, chunk = [1, 2, 3, 4, 5, 6, 7, 8], 3
    one, two = prefix_cache.split_blocks(ids, chunk, 2), prefix_cache.split_blocks(ids, chunk, 5)
    assert [block.end for block in one] == [2, 5, 8]
    assert [block.end for block in two] == [3, 5, 8]
    assert not {block.hash for block in one} & {block.hash for block in two}


@given(ids, st.integers(1, 4), st.integers(0, 12))
def test_blocks_are_full_chunks_and_the_rest_of_the_shared_tokens(a, chunk, shared):
    shared = min(shared, len(a))
    ends = [0, *(block.end for block in prefix_cache.split_blocks(a, chunk, shared))]
    sizes = [end - begin for begin, end in pairwise(ends)]
    assert shared in ends
    assert all(size == chunk or end == shared for size, end in zip(sizes, ends[1:], strict=True))
    assert max(sizes, default=0) <= chunk
    assert len(a) - ends[-1] < chunk


def test_a_copy_is_stored_and_earlier_caches_do_not_change():
    k = torch.ones(1, 2, 1, 1)
    empty = PrefixCache(2)
    full = prefix_cache.insert(empty, b"a", KeysValues(k, -k))
    k.zero_()
    assert prefix_cache.lookup(full, b"a")[1][0].tolist() == [[[[1.0]], [[1.0]]]]
    assert prefix_cache.lookup(empty, b"a")[1] is None
    assert list(prefix_cache.insert(full, b"b", KeysValues(k, k)).entries) == [b"b"]
    assert list(full.entries) == [b"a"]


@given(st.integers(0, 6), st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=30))
def test_the_least_recently_used_is_dropped_first(capacity, steps):
    cache, recent = PrefixCache(capacity), []
    for is_insert, number in steps:
        name, size = bytes([number]), 1 + number % 3
        if is_insert and name not in recent:
            x = torch.zeros(1, size, 1, 1)
            cache = prefix_cache.insert(cache, name, KeysValues(x, x))
            if size <= capacity:
                recent.append(name)
                while sum(1 + one[0] % 3 for one in recent) > capacity:
                    del recent[0]
        elif not is_insert:
            cache, entry = prefix_cache.lookup(cache, name)
            assert (entry is not None) == (name in recent)
            recent = (
                [*(one for one in recent if one != name), name] if entry is not None else recent
            )
        assert list(cache.entries) == recent
