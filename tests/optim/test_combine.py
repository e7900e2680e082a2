"""Combinators: a combination of Transforms is a Transform, chosen by path."""

import pytest
import torch

from slm_fn.core import tree
from slm_fn.core.types import Transform
from slm_fn.optim.combine import apply_updates, chain, partition, scale, stateless

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


@pytest.mark.parametrize(("where", "chose"), [(lambda path: False, "none"), (lambda path: True, "all")])
def test_a_predicate_that_chooses_nothing_or_all_is_an_error(where, chose):
    with pytest.raises(ValueError, match=rf"chose {chose} of \['a/w', 'b'\]"):
        partition(where, scale(1.0), scale(1.0)).init(ONES)


def test_updates_are_added_in_the_params_dtype():
    params = apply_updates({"w": torch.ones(1, dtype=torch.bfloat16)}, {"w": torch.full((1,), 2.0)})
    assert params["w"].dtype == torch.bfloat16
    assert params["w"] == 3
