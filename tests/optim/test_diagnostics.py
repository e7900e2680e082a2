"""Measures: the identity on updates, and figures that are what they say."""

import pytest
import torch

from slm_fn.core import random, tree
from slm_fn.optim import combine, diagnostics, guard, transforms
from slm_fn.optim.diagnostics import NoiseScaleState, SnapshotState
from slm_fn.optim.transforms import find_state

PARAMS = {"a": {"w": torch.full((4,), 2.0)}, "b": torch.ones(9)}
GRADS = {"a": {"w": torch.full((4,), 0.5)}, "b": torch.full((9,), -1.0)}


@pytest.mark.parametrize(
    "make", [diagnostics.leaf_norms, diagnostics.update_ratio, diagnostics.gradient_noise_scale]
)
def test_a_measurement_is_the_identity_and_its_state_keeps_its_shape(make, same, purely):
    tx = make()
    first = tx.init(PARAMS)
    updates, state = purely(tx.update, GRADS, first, PARAMS)
    assert same(updates, GRADS)
    shapes = [
        {path: (x.shape, x.dtype) for path, x in tree.named_leaves(s).items()}
        for s in (first, state)
    ]
    assert shapes[0] == shapes[1]
    together = torch.func.vmap(tx.update)(*(tree.stack(x, x) for x in (GRADS, first, PARAMS)))
    assert same(together, tree.stack((updates, state), (updates, state)))


def test_a_snapshot_is_the_value_its_function_returned():
    tx = combine.chain(
        combine.scale(2.0),
        diagnostics.snapshot("mean", lambda u, p: {"b": u["b"].mean() + p["b"].mean()}),
    )
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert find_state(state, SnapshotState).value == {"mean": {"b": -1}}
    assert diagnostics.read_metrics(state) == {"mean/b": -1}


def test_norms_and_ratios_leaf_by_leaf():
    tx = combine.chain(diagnostics.leaf_norms(), combine.scale(-0.1), diagnostics.update_ratio())
    metrics = diagnostics.read_metrics(tx.update(GRADS, tx.init(PARAMS), PARAMS)[1])
    want = {
        "grad_norm/a/w": 1.0,
        "grad_norm/b": 3.0,
        "update_ratio/a/w": 0.025,
        "update_ratio/b": 0.1,
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(want)


def test_every_measurement_is_read_through_every_wrapper():
    inner = combine.chain(transforms.clip_by_global_norm(1.0), diagnostics.update_ratio())
    injected = combine.inject_hyperparams(lambda size: inner, size=1.0)
    wrapped = combine.partition(lambda path: path == "b", injected, combine.chain())
    tx = guard.skip_steps(wrapped, guard.check_spikes(3.0), guard.adapt_loss_scale())
    metrics = diagnostics.read_metrics(tx.update(GRADS, tx.init(PARAMS), PARAMS)[1])
    assert {name: round(value.item(), 4) for name, value in metrics.items()} == {
        "clip_factor": 0.3333, "clipped_share": 1, "update_ratio/b": 0.3333,
        "running_grad_norm": 3.1623, "spikes": 0, "loss_scale": 2.0**15,
    }  # fmt: skip


@pytest.mark.parametrize(("signal", "noise"), [(1.0, 1.0), (1.0, 30.0), (0.3, 0.03)])
def test_the_noise_scale_of_gradients_with_known_noise(signal, noise):
    # True gradient of length^2 `signal`; every batch's about it with variance `noise` in all.
    dim = 400
    true = random.normal(0, (dim,))
    true = true / true.norm() * signal**0.5
    tx, params, state = (
        diagnostics.gradient_noise_scale(),
        {"w": true},
        diagnostics.gradient_noise_scale().init({"w": true}),
    )
    for n in range(400):
        g = true + random.normal(n + 1, (dim,)) * (noise / dim) ** 0.5
        _, state = tx.update({"w": g}, state, params)
    seen = 1 - 0.99**399  # both running averages start at zero, and their quotient does not care
    assert state.noise.item() / seen == pytest.approx(noise, rel=0.05)
    assert state.signal.item() / seen == pytest.approx(signal, rel=0.3, abs=0.01 * noise)
    assert diagnostics.read_metrics(state)["noise_scale"].item() == pytest.approx(
        noise / signal, rel=0.3
    )


def test_the_share_of_noise_in_the_mean_is_that_of_its_weights():
    # Orthogonal gradients of equal norm have no common signal: its estimate is exactly zero.
    tx, w = diagnostics.gradient_noise_scale(decay=0.7, memory=0.0), {"w": torch.zeros(6)}
    state = tx.init(w)
    for n in range(6):
        _, state = tx.update({"w": torch.eye(6)[n] * 2}, state, w)
        if n:
            assert find_state(state, NoiseScaleState).signal.item() == pytest.approx(0.0, abs=1e-5)
            assert find_state(state, NoiseScaleState).noise.item() == pytest.approx(4.0, rel=1e-5)
