"""Measures: the identity on updates, and figures that are what they say."""

import pytest
import torch

from slm_fn.core import random, tree
from slm_fn.optim import combine, guard, measure, transforms
from slm_fn.optim.measure import NoiseState, SnapshotState
from slm_fn.optim.transforms import find

PARAMS = {"a": {"w": torch.full((4,), 2.0)}, "b": torch.ones(9)}
GRADS = {"a": {"w": torch.full((4,), 0.5)}, "b": torch.full((9,), -1.0)}


@pytest.mark.parametrize("make", [measure.leaf_norms, measure.update_ratio, measure.noise_scale])
def test_a_measure_is_the_identity_and_keeps_its_shape(make, same, purely):
    tx = make()
    first = tx.init(PARAMS)
    updates, state = purely(tx.update, GRADS, first, PARAMS)
    assert same(updates, GRADS)
    shapes = [{path: (x.shape, x.dtype) for path, x in tree.paths(s).items()} for s in (first, state)]
    assert shapes[0] == shapes[1]
    together = torch.func.vmap(tx.update)(*(tree.stack(x, x) for x in (GRADS, first, PARAMS)))
    assert same(together, tree.stack((updates, state), (updates, state)))


def test_a_snapshot_is_what_its_function_returned():
    tx = combine.chain(combine.scale(2.0), measure.snapshot("mean", lambda u, p: {"b": u["b"].mean() + p["b"].mean()}))
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert find(state, SnapshotState).value == {"mean": {"b": -1}}
    assert measure.read(state) == {"mean/b": -1}


def test_norms_and_ratios_leaf_by_leaf():
    tx = combine.chain(measure.leaf_norms(), combine.scale(-0.1), measure.update_ratio())
    told = measure.read(tx.update(GRADS, tx.init(PARAMS), PARAMS)[1])
    want = {"grad_norm/a/w": 1.0, "grad_norm/b": 3.0, "update_ratio/a/w": 0.025, "update_ratio/b": 0.1}
    assert {name: value.item() for name, value in told.items()} == pytest.approx(want)


def test_every_measure_is_read_through_every_wrapper():
    inner = combine.chain(transforms.clip_by_global_norm(1.0), measure.update_ratio())
    wrapped = combine.masked(lambda path: path == "b", combine.inject(lambda size: inner, size=1.0))
    tx = guard.guard(wrapped, guard.spikes(3.0), guard.loss_scale())
    told = measure.read(tx.update(GRADS, tx.init(PARAMS), PARAMS)[1])
    assert {name: round(value.item(), 4) for name, value in told.items()} == {
        "clip_factor": 0.3333, "clipped_share": 1, "update_ratio/b": 0.3333,
        "running_grad_norm": 3.1623, "spikes": 0, "loss_scale": 2.0**15,
    }  # fmt: skip


@pytest.mark.parametrize(("signal", "noise"), [(1.0, 1.0), (1.0, 30.0), (0.3, 0.03)])
def test_the_noise_scale_of_gradients_drawn_to_order(signal, noise):
    # True gradient of length^2 `signal`; every batch's about it with variance `noise` in all.
    dim = 400
    true = random.normal(0, (dim,))
    true = true / true.norm() * signal**0.5
    tx, params, state = measure.noise_scale(), {"w": true}, measure.noise_scale().init({"w": true})
    for n in range(400):
        g = true + random.normal(n + 1, (dim,)) * (noise / dim) ** 0.5
        _, state = tx.update({"w": g}, state, params)
    seen = 1 - 0.99**399  # both running averages start at zero, and their quotient does not care
    assert state.noise.item() / seen == pytest.approx(noise, rel=0.05)
    assert state.signal.item() / seen == pytest.approx(signal, rel=0.3, abs=0.01 * noise)
    assert measure.read(state)["noise_scale"].item() == pytest.approx(noise / signal, rel=0.3)


def test_the_share_of_noise_in_the_mean_is_that_of_its_weights():
    # Gradients that are orthogonal and of equal length have no common part: the estimate of it is exactly zero.
    tx, w = measure.noise_scale(decay=0.7, memory=0.0), {"w": torch.zeros(6)}
    state = tx.init(w)
    for n in range(6):
        _, state = tx.update({"w": torch.eye(6)[n] * 2}, state, w)
        if n:
            assert find(state, NoiseState).signal.item() == pytest.approx(0.0, abs=1e-5)
            assert find(state, NoiseState).noise.item() == pytest.approx(4.0, rel=1e-5)
