"""Skipped steps change no bit, spikes differ from growth, the loss scale equals torch's."""

import pytest
import torch

from slm_fn.core import tree
from slm_fn.core.types import Transform
from slm_fn.optim.combine import apply_updates, chain
from slm_fn.optim.guard import (
    LossScaleState,
    SkipState,
    SpikeState,
    adapt_loss_scale,
    check_finite,
    check_spikes,
    skip_steps,
)
from slm_fn.optim.transforms import find_state, params_ema


def counting():
    return Transform(
        lambda params: torch.zeros(()), lambda updates, state, params: (updates, state + 1)
    )


def run_steps(tx, norms, state=None):
    """Gradients of the given lengths; which were taken, and the last state."""
    w = {"w": torch.zeros(1)}
    state, taken = tx.init(w) if state is None else state, []
    for norm in norms:
        updates, state = tx.update({"w": torch.tensor([float(norm)])}, state, w)
        taken.append(bool(updates["w"] != 0))
    return taken, state


def test_skipped_steps_are_counted_and_change_no_bit(same):
    tx = skip_steps(chain(counting(), params_ema(0.5)), check_finite())
    params = {"w": torch.tensor([0.0, -0.0, 1e-40, 3.0])}
    start = tx.init(params)
    updates, state = tx.update({"w": torch.tensor([0.0, torch.nan, 0.0, 0.0])}, start, params)
    assert same(apply_updates(params, updates), params)
    assert same(state.inner, start.inner)
    assert state.skipped == 1
    updates, state = tx.update({"w": torch.ones(4)}, state, params)
    assert updates["w"].tolist() == [1, 1, 1, 1]
    assert state.skipped == 1
    assert state.inner[0] == 1


def test_a_spike_is_skipped_and_counted_once_warm():
    tx = skip_steps(counting(), check_finite(), check_spikes(factor=3.0, warmup_steps=5))
    taken, state = run_steps(tx, [1, 1, 100, 1, 1, 1, 1, 1])
    assert taken == [True] * 8  # a hundred came before the fifth
    taken, state = run_steps(tx, [1] * 5 + [2.9, 4.5, 1, torch.nan, torch.inf, 1, 50])
    assert taken == [True] * 6 + [False, True, False, False, True, False]
    assert state.inner == 8
    assert state.skipped == 4
    assert find_state(state, SpikeState).num_spikes == 2
    assert find_state(state, SpikeState).num_updates == 10


def test_the_running_norm_is_the_mean_weighted_by_age():
    norms, decay = [3.0, 1.0, 2.0, 0.5], 0.9
    spike_state = find_state(
        run_steps(skip_steps(counting(), check_finite(), check_spikes(100.0, decay)), norms)[1],
        SpikeState,
    )
    weights = [decay**age for age in range(len(norms))][::-1]
    want = sum(w * n for w, n in zip(weights, norms, strict=True)) / sum(weights)
    assert (spike_state.norm / spike_state.weight).item() == pytest.approx(want, rel=1e-6)


def test_gradients_that_stay_larger_are_accepted_after_some_steps():
    taken, _ = run_steps(
        skip_steps(counting(), check_finite(), check_spikes(factor=3.0, decay=0.9, warmup_steps=5)),
        [1] * 10 + [10] * 30,
    )
    refused = taken[10:].index(True)
    assert 3 < refused < 15
    assert all(taken[10 + refused :])


def test_the_loss_scale_equals_torch_s():
    tx = skip_steps(counting(), adapt_loss_scale(2.0**10, growth_interval=3))
    norms = [1, 1, torch.inf, 1, 1, 1, 1, 1, 1, torch.nan, torch.nan, 1, 1, 1, 1]
    scale, growth, state = torch.tensor(2.0**10), torch.tensor(0, dtype=torch.int32), None
    for norm in norms:
        taken, state = run_steps(tx, [norm], state)
        overflow = not torch.isfinite(torch.tensor(float(norm)))
        torch._amp_update_scale_(scale, growth, torch.tensor(float(overflow)), 2.0, 0.5, 3)
        loss_scale = find_state(state, LossScaleState)
        assert (loss_scale.scale, loss_scale.good) == (scale, growth)
        assert taken == [not overflow]
    assert state.inner == 12
    assert state.skipped == 0  # an overflow is how the scale is found


def test_nan_at_the_minimum_scale_is_a_fault():
    _, state = run_steps(skip_steps(counting(), adapt_loss_scale(4.0)), [torch.nan] * 5)
    assert find_state(state, LossScaleState).scale == 1
    assert state.skipped == 3
    _, state = run_steps(
        skip_steps(counting(), adapt_loss_scale(2.0**23, growth_interval=1)), [1] * 5
    )
    assert find_state(state, LossScaleState).scale == 2.0**24


def test_a_step_is_taken_only_if_all_checks_pass():
    tx = skip_steps(counting(), adapt_loss_scale(8.0), check_spikes(3.0, warmup_steps=2))
    taken, state = run_steps(tx, [1, 1, 1, 9, torch.inf, 1])
    assert taken == [True, True, True, False, False, True]
    assert (
        state.skipped,
        find_state(state, SpikeState).num_spikes,
        find_state(state, LossScaleState).scale,
    ) == (
        1,
        1,
        4,
    )


@pytest.mark.parametrize(
    "checks",
    [
        (check_finite(),),
        (check_finite(), check_spikes(3.0, warmup_steps=1)),
        (adapt_loss_scale(growth_interval=2),),
    ],
)
def test_each_ensemble_member_is_checked_separately(checks, same):
    tx, w = skip_steps(counting(), *checks), {"w": torch.ones(2, 3)}
    alone = {"w": torch.ones(3)}
    together = tree.stack(tx.init(alone), tx.init(alone))
    apart = [tx.init(alone), tx.init(alone)]
    for size in (1.0, 1.0, 20.0, torch.nan, 1.0):
        grads = {"w": torch.tensor([1.0, size])[:, None] * torch.ones(2, 3)}
        updates, together = torch.func.vmap(tx.update)(grads, together, w)
        for e in range(2):
            one, apart[e] = tx.update({"w": grads["w"][e]}, apart[e], alone)
            assert same({"w": updates["w"][e]}, one)
    assert same(together, tree.stack(*apart))
    assert find_state(together, SkipState).inner[0] == 5
