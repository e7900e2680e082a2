"""Clipping, decay, learning rate and average against torch and a loop."""

import pytest
import torch
from torch import nn

from slm_fn.core import random, tree
from slm_fn.optim import combine, guard, schedules, transforms
from slm_fn.optim.directions import AdamState
from slm_fn.optim.transforms import ClipState, EmaState, ScheduleState, find_state

SHAPES = {"blocks": {"w": (3, 4, 5), "norm": (3, 4)}, "embed": (7, 4), "head": (7, 4), "norm": (4,)}
IS_MATRIX = {"blocks/w"}.__contains__


def draw(key, std=1.0):
    return tree.map_with_path(
        SHAPES, lambda path, shape: random.normal(random.fold_in(key, path), shape, std)
    )


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_equals_torch_s(max_norm, gap):
    grads = draw(3)
    twins = [nn.Parameter(torch.zeros_like(g)) for g in tree.leaves(grads)]
    for twin, g in zip(twins, tree.leaves(grads), strict=True):
        twin.grad = g.clone()
    nn.utils.clip_grad_norm_(twins, max_norm)
    clip = transforms.clip_by_global_norm(max_norm)
    clipped, _ = clip.update(grads, clip.init(grads), grads)
    assert (
        gap(dict(enumerate(tree.leaves(clipped))), {i: twin.grad for i, twin in enumerate(twins)})
        <= 1e-6
    )
    assert tree.global_norm(clipped) <= max_norm * 1.000001


def test_a_zero_gradient_is_clipped_to_zero():
    zeros = tree.map(torch.zeros_like, draw(0))
    clip = transforms.clip_by_global_norm(1.0)
    clipped, _ = clip.update(zeros, clip.init(zeros), zeros)
    assert tree.global_norm(clipped) == 0


def test_clipping_is_counted():
    clip, w = transforms.clip_by_global_norm(2.0), {"w": torch.zeros(1)}
    state = clip.init(w)
    for size in (1.0, 4.0, 8.0, 2.0):
        _, state = clip.update({"w": torch.tensor([size])}, state, w)
    assert find_state(state, ClipState) == (2.0, 1.0, 2, 4)
    assert clip.update({"w": torch.tensor([8.0])}, state, w)[1][:2] == (8.0, 0.25)


def test_decay_applies_only_to_chosen_leaves():
    params, zeros = draw(0), tree.map(torch.zeros_like, draw(0))
    decayed, _ = transforms.add_decayed_weights(0.1, IS_MATRIX).update(zeros, (), params)
    moved = {path for path, u in tree.named_leaves(decayed).items() if u.any()}
    assert moved == {"blocks/w"}
    assert torch.allclose(decayed["blocks"]["w"], 0.1 * params["blocks"]["w"])


def test_the_learning_rate_follows_the_count_and_is_stored():
    tx = transforms.scale_by_learning_rate(lambda count: 1 / (1 + count))
    g, state = {"w": torch.tensor([6.0])}, tx.init({"w": torch.zeros(1)})
    steps = []
    for _ in range(3):
        updates, state = tx.update(g, state, g)
        steps.append(updates["w"].item())
    assert steps == pytest.approx([-6.0, -3.0, -2.0])
    assert state.num_updates == 3
    assert find_state(state, ScheduleState).rate == pytest.approx(1 / 3)


def test_ema_equals_the_loop(gap, purely):
    tx = combine.chain(
        transforms.scale_by_learning_rate(schedules.constant(0.1)), transforms.params_ema(0.6)
    )
    params = draw(0)
    state, average = tx.init(params), tree.map(lambda w: w.double(), params)
    for n in range(1, 25):
        updates, state = purely(tx.update, draw(n), state, params)
        params = combine.apply_updates(params, updates)
        decay = min(0.6, (1 + n) / (10 + n))
        average = tree.map(lambda a, w, d=decay: d * a + (1 - d) * w.double(), average, params)
    ema = find_state(state, EmaState).average
    assert gap(ema, tree.cast(average, torch.float32)) <= 1e-6
    assert gap(ema, params) > 1e-3


def test_the_average_starts_as_a_copy():
    params = draw(0)
    average = transforms.params_ema(0.9).init(params).average
    assert all(
        a.data_ptr() != w.data_ptr()
        for a, w in zip(tree.leaves(average), tree.leaves(params), strict=True)
    )


def test_find_state_searches_nested_states():
    inner = EmaState({"w": torch.ones(1)}, torch.zeros(()))
    state = guard.SkipState(
        ((), (ScheduleState(torch.zeros(()), torch.zeros(())), (inner,))),
        torch.zeros(()),
        torch.zeros(()),
    )
    assert find_state(state, EmaState) is inner
    assert find_state(state, AdamState) is None
