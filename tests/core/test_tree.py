"""Trees: every pair of inverses is a round trip, and paths are what the README says."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm_fn.core import tree
from slm_fn.core.types import TrainState

names = st.text("abcdef", min_size=1, max_size=3)
trees = st.dictionaries(
    names,
    st.recursive(
        st.integers(0, 9), lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3)
    ),
    max_size=4,
)


def tensors(shape: dict[str, Any]) -> dict[str, Any]:
    return tree.map_with_path(shape, lambda path, n: torch.full((2, 3), float(n)))


@given(trees)
def test_paths_and_from_paths_are_inverse(shape):
    t = tensors(shape)
    flat = tree.named_leaves(t)
    back = tree.from_named_leaves(t, dict(reversed(flat.items())))
    assert list(tree.named_leaves(back)) == list(flat)
    assert all(x is y for x, y in zip(tree.leaves(back), tree.leaves(t), strict=True))


@given(trees)
def test_flat_is_paths_but_for_leaf_kinds(shape):
    assert list(tree.flatten_dict(shape).items()) == list(tree.named_leaves(shape).items())
    pairs = tree.map_with_path(shape, lambda path, n: (path, n))
    assert all(path == mapped_path for path, (mapped_path, _) in tree.flatten_dict(pairs).items())


@given(trees, st.sets(st.sampled_from("abcdef")))
def test_partition_and_merge_are_inverse(shape, letters):
    chosen, rest = tree.partition(shape, lambda path: path[-1] in letters)
    assert all(path[-1] in letters for path in tree.named_leaves(chosen))
    assert not any(path[-1] in letters for path in tree.named_leaves(rest))
    joined = tree.reorder_like(tree.merge(chosen, rest), shape)
    assert joined == shape
    assert list(tree.named_leaves(joined)) == list(tree.named_leaves(shape))


def test_merge_refuses_a_leaf_twice():
    with pytest.raises(ValueError, match="'b'"):
        tree.merge({"a": {"b": 1}}, {"a": {"b": 2}})


def test_from_paths_names_what_is_missing():
    with pytest.raises(KeyError, match="a/b"):
        tree.from_named_leaves({"a": {"b": torch.ones(1)}}, {})


@given(trees)
def test_stack_and_unstack_are_inverse(shape):
    members = [tensors(shape), tree.map(lambda x: x + 1, tensors(shape))]
    if not shape:
        return
    for member, back in zip(members, tree.unstack(tree.stack(*members)), strict=True):
        assert tree.named_leaves(member).keys() == tree.named_leaves(back).keys()
        assert all(
            torch.equal(a, b) for a, b in zip(tree.leaves(member), tree.leaves(back), strict=True)
        )


def test_paths_read_dicts_tuples_and_named_tuples():
    state = TrainState({"blocks": {"q": torch.ones(1)}}, ({"mu": torch.ones(1)},), torch.ones(()))
    assert list(tree.named_leaves(state)) == ["params/blocks/q", "opt_state/0/mu", "step"]


def test_the_backward_of_unstack_is_one_stack():
    # An index per layer would allocate a full-size zero tensor for each of them.
    w = torch.ones(4, 2, requires_grad=True)
    rows = tree.unstack({"w": w})
    assert {row["w"].grad_fn.name() for row in rows} == {"UnbindBackward0"}


def test_norm_cast_and_count():
    t = {"a": torch.full((2, 2), 2.0, dtype=torch.bfloat16), "b": torch.tensor([3.0])}
    assert tree.global_norm(t) == 5.0
    assert tree.global_norm(t).dtype == torch.float32
    assert tree.num_elements(t) == 5
    mixed = tree.cast({"w": torch.ones(1), "n": torch.ones(1, dtype=torch.long)}, torch.bfloat16)
    assert [x.dtype for x in tree.leaves(mixed)] == [torch.bfloat16, torch.long]


def test_norms_of_many_small_numbers_do_not_overflow_their_dtype():
    assert tree.global_norm({"a": torch.full((4,), 300.0, dtype=torch.float16)}) == 600.0
