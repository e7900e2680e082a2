"""Combinators: a combination of Transforms is a Transform, chosen by path."""

import pytest
import torch

from slm_fn.core import tree
from slm_fn.core.types import Transform
from slm_fn.optim.combine import (
    apply_updates,
    chain,
    inject_hyperparams,
    multi_transform,
    partition,
    scale,
    stateless,
)
from slm_fn.optim.transforms import EmaState, find_state, params_ema

ONES = {"a": {"w": torch.ones(2)}, "b": torch.ones(2)}
HALVES = {"a": {"w": torch.full((2,), 0.5)}, "b": torch.ones(2)}


def counting():
    return Transform(
        lambda params: torch.zeros(()), lambda updates, state, params: (updates, state + 1)
    )


def test_chain_applies_from_left_to_right():
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


def test_partition_applies_each_transform_to_its_paths(purely, same):
    tx = partition(lambda path: path.startswith("a/"), chain(counting(), scale(0.5)), counting())
    updates, state = purely(tx.update, ONES, tx.init(ONES), ONES)
    assert same(updates, HALVES)
    assert list(tree.named_leaves(updates)) == list(tree.named_leaves(ONES))
    assert [leaf.item() for leaf in tree.leaves(state)] == [1, 1]


@pytest.mark.parametrize(
    ("where", "idle"), [(lambda path: False, "chosen"), (lambda path: True, "rest")]
)
def test_a_predicate_that_chooses_nothing_or_all_is_an_error(where, idle):
    with pytest.raises(ValueError, match=rf"no path labelled \['{idle}'\], among \['a/w', 'b'\]"):
        partition(where, scale(1.0), scale(1.0)).init(ONES)


def test_labels_choose_among_many_and_keep_the_order_of_keys(purely):
    tree_ = {
        "x": torch.ones(1),
        "deep": {"y": torch.ones(1), "x": torch.ones(1)},
        "z": torch.ones(1),
    }
    tx = multi_transform(
        lambda path: path[-1],
        {"z": scale(3.0), "x": counting(), "y": chain(counting(), scale(2.0))},
    )
    updates, state = purely(tx.update, tree_, tx.init(tree_), tree_)
    assert {path: u.item() for path, u in tree.named_leaves(updates).items()} == {
        "x": 1,
        "deep/y": 2,
        "deep/x": 1,
        "z": 3,
    }
    assert list(tree.named_leaves(updates)) == list(tree.named_leaves(tree_))
    assert state == ((), 1, (1, ()))
    with pytest.raises(ValueError, match=r"no transform named \['z'\]"):
        multi_transform(lambda path: path[-1], {"x": scale(1.0), "y": scale(1.0)}).init(tree_)


def test_an_empty_chain_leaves_its_leaves_unchanged(same):
    tx = partition(lambda path: path == "b", chain(counting(), scale(2.0)), chain())
    updates, _ = tx.update(HALVES, tx.init(HALVES), HALVES)
    assert same(updates, {"a": HALVES["a"], "b": torch.full((2,), 2.0)})
    tx = partition(lambda path: path == "b", params_ema(0.5), chain())
    assert find_state(tx.init(ONES), EmaState) is not None


def test_injected_numbers_are_constant_and_schedules_advance():
    tx = inject_hyperparams(
        lambda size, grow: chain(counting(), scale(size), scale(grow)),
        size=3.0,
        grow=lambda count: 1 + count,
    )
    state, got = tx.init(ONES), []
    for _ in range(3):
        updates, state = tx.update(ONES, state, ONES)
        got.append(updates["b"][0].item())
    assert got == [3, 6, 9]
    assert (state.hyper["size"], state.hyper["grow"], state.num_updates, state.inner[0]) == (
        3,
        3,
        3,
        3,
    )
    members = tree.stack(*(inject_hyperparams(scale, factor=f).init(ONES) for f in (2.0, 5.0)))
    updates, _ = torch.func.vmap(
        inject_hyperparams(scale, factor=0.0).update, in_dims=(None, 0, None)
    )(ONES, members, ONES)
    assert updates["b"][:, 0].tolist() == [2, 5]


def test_updates_are_added_in_the_params_dtype():
    params = apply_updates({"w": torch.ones(1, dtype=torch.bfloat16)}, {"w": torch.full((1,), 2.0)})
    assert params["w"].dtype == torch.bfloat16
    assert params["w"] == 3
