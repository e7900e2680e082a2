"""Adafactor against torch.optim.Adafactor, layer by layer, and the size of its state."""

import pytest
import torch
from torch import nn

from slm_fn.core import random, tree
from slm_fn.optim import combine, schedules, transforms
from slm_fn.optim.adafactor import average_updates, scale_by_factored_rms, scale_by_rms

SHAPES = {"blocks": {"w": (3, 4, 5)}, "embed": (7, 4), "norm": (4,)}
IS_MATRIX = {"blocks/w", "embed"}.__contains__


def draw(key, std=1.0):
    return tree.map_with_path(
        SHAPES, lambda path, shape: random.normal(random.fold_in(key, path), shape, std)
    )


@pytest.mark.parametrize("std", [1.0, 1e-4])
def test_adafactor_equals_torch_s_on_every_layer(std, gap, purely):
    rate, decay = 1e-2, 0.3
    tx = combine.chain(
        combine.partition(
            IS_MATRIX, scale_by_factored_rms(min_param_rms=1e-3), scale_by_rms(min_param_rms=1e-3)
        ),
        transforms.add_decayed_weights(decay, lambda path: True),
        transforms.scale_by_learning_rate(schedules.constant(rate)),
    )
    params = draw(0, std)
    twins = {
        path: [nn.Parameter(one.clone()) for one in (w if w.ndim == 3 else [w])]
        for path, w in tree.named_leaves(params).items()
    }
    peer = torch.optim.Adafactor(
        [twin for pair in twins.values() for twin in pair], lr=rate, weight_decay=decay
    )
    state = tx.init(params)
    for n in range(10):
        grads = draw(100 + n, std=10.0 ** (n % 5 - 3))
        updates, state = purely(tx.update, grads, state, params)
        params = combine.apply_updates(params, updates)
        for path, g in tree.named_leaves(grads).items():
            for twin, one in zip(twins[path], g if g.ndim == 3 else [g], strict=True):
                twin.grad = one.clone()
        peer.step()
    want = {
        path: torch.stack([twin.detach() for twin in twins[path]]).reshape(w.shape)
        for path, w in tree.named_leaves(params).items()
    }
    assert gap(params, tree.from_named_leaves(params, want)) <= 1e-5


def test_a_gradient_of_rank_one_is_scaled_exactly():
    rows, cols = torch.tensor([1.0, 4.0, 2.0]), torch.tensor([3.0, 1.0])
    g = {"w": torch.outer(rows, cols)}
    updates, _ = scale_by_factored_rms().update(g, scale_by_factored_rms().init(g), g)
    assert torch.allclose(updates["w"], torch.ones(3, 2), atol=1e-6)


def test_an_update_is_clipped_by_its_root_mean_square():
    tx, w = scale_by_rms(clipping_threshold=0.5), {"w": torch.ones(4)}
    updates, _ = tx.update({"w": torch.tensor([1.0, -1.0, 1.0, 1.0])}, tx.init(w), w)
    assert updates["w"].tolist() == pytest.approx([0.5, -0.5, 0.5, 0.5])


def test_the_state_of_a_matrix_is_one_row_and_one_column():
    w = {"w": torch.ones(3, 40, 50)}
    assert tree.num_elements(scale_by_factored_rms().init(w)) == 3 * (40 + 50) + 1


def test_zero_gradients_change_nothing():
    for tx in (scale_by_factored_rms(min_param_rms=1e-3), scale_by_rms()):
        w = {"w": torch.ones(2, 3)}
        updates, _ = tx.update({"w": torch.zeros(2, 3)}, tx.init(w), w)
        assert not updates["w"].any()


def test_the_average_of_updates_is_a_running_mean():
    tx, state = average_updates(0.75), average_updates(0.75).init({"w": torch.zeros(1)})
    got = []
    for u in (4.0, 0.0, 8.0):
        updates, state = tx.update({"w": torch.tensor([u])}, state, {})
        got.append(updates["w"].item())
    assert got == [1.0, 0.75, 2.5625]
