"""Combinators: a combination of Transforms is a Transform, chosen by path."""

import pytest
import torch

from slm_fn.core import tree
from slm_fn.core.types import Transform
from slm_fn.optim.combine import apply_updates, chain, inject, label, masked, partition, scale, stateless
from slm_fn.optim.transforms import EmaState, find, params_ema

ONES = {"a": {"w": torch.ones(2)}, "b": torch.ones(2)}
HALVES = {"a": {"w": torch.full((2,), 0.5)}, "b": torch.ones(2)}


def counting():
    return Transform(lambda params: torch.zeros(()), lambda updates, state, params: (updates, state + 1))


def test_chain_goes_from_left_to_right():
    plus = stateless(lambda updates, params: tree.map(lambda u: u + 1, updates))
    for parts, want in (((scale(2.0), plus), 3), ((plus, scale(2.0)), 4), ((), 1)):
        tx = chain(*parts)
        updates, state = tx.update(ONES, tx.init(ONES), ONES)
        assert updates["b"].tolist() == [want, want]
        assert state == ((),) * len(parts)


def test_chains_nest():
    tx = chain(counting(), chain(counting(), scale(3.0)))
    updates, state = tx.update(ONES, tx.init(ONES), ONES)
    assert updates["b"][0] == 3
    assert [leaf.item() for leaf in tree.leaves(state)] == [1, 1]


def test_a_state_of_another_chain_is_refused():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        chain(scale(1.0), scale(1.0)).update(ONES, ((),), ONES)


def test_partition_treats_each_path_by_its_own(purely, same):
    tx = partition(lambda path: path.startswith("a/"), chain(counting(), scale(0.5)), counting())
    updates, state = purely(tx.update, ONES, tx.init(ONES), ONES)
    assert same(updates, HALVES)
    assert list(tree.paths(updates)) == list(tree.paths(ONES))
    assert [leaf.item() for leaf in tree.leaves(state)] == [1, 1]


@pytest.mark.parametrize(("where", "idle"), [(lambda path: False, "chosen"), (lambda path: True, "rest")])
def test_a_predicate_that_chooses_nothing_or_all_is_an_error(where, idle):
    with pytest.raises(ValueError, match=rf"no path for \['{idle}'\], among \['a/w', 'b'\]"):
        partition(where, scale(1.0), scale(1.0)).init(ONES)


def test_labels_choose_among_many_and_keep_the_order_of_keys(purely):
    tree_ = {"x": torch.ones(1), "deep": {"y": torch.ones(1), "x": torch.ones(1)}, "z": torch.ones(1)}
    tx = label(lambda path: path[-1], {"z": scale(3.0), "x": counting(), "y": chain(counting(), scale(2.0))})
    updates, state = purely(tx.update, tree_, tx.init(tree_), tree_)
    assert {path: u.item() for path, u in tree.paths(updates).items()} == {"x": 1, "deep/y": 2, "deep/x": 1, "z": 3}
    assert list(tree.paths(updates)) == list(tree.paths(tree_))
    assert state == ((), 1, (1, ()))
    with pytest.raises(ValueError, match=r"no transform named \['z'\]"):
        label(lambda path: path[-1], {"x": scale(1.0), "y": scale(1.0)}).init(tree_)


def test_masked_leaves_the_rest_as_it_is(same):
    tx = masked(lambda path: path == "b", chain(counting(), scale(2.0)))
    updates, _ = tx.update(HALVES, tx.init(HALVES), HALVES)
    assert same(updates, {"a": HALVES["a"], "b": torch.full((2,), 2.0)})
    assert find(masked(lambda path: path == "b", params_ema(0.5)).init(ONES), EmaState) is not None


def test_injected_numbers_are_held_and_schedules_move():
    tx = inject(lambda size, grow: chain(counting(), scale(size), scale(grow)), size=3.0, grow=lambda count: 1 + count)
    state, got = tx.init(ONES), []
    for _ in range(3):
        updates, state = tx.update(ONES, state, ONES)
        got.append(updates["b"][0].item())
    assert got == [3, 6, 9]
    assert (state.hyper["size"], state.hyper["grow"], state.num_updates, state.inner[0]) == (3, 3, 3, 3)
    members = tree.stack(*(inject(scale, factor=f).init(ONES) for f in (2.0, 5.0)))
    updates, _ = torch.func.vmap(inject(scale, factor=0.0).update, in_dims=(None, 0, None))(ONES, members, ONES)
    assert updates["b"][:, 0].tolist() == [2, 5]


def test_updates_are_added_in_the_params_dtype():
    params = apply_updates({"w": torch.ones(1, dtype=torch.bfloat16)}, {"w": torch.full((1,), 2.0)})
    assert params["w"].dtype == torch.bfloat16
    assert params["w"] == 3
