"""Guards: a skipped step changes no bit, spikes are told from growth, and the loss scale is torch's."""

import pytest
import torch

from slm_fn.core import tree
from slm_fn.core.types import Transform
from slm_fn.optim.combine import apply_updates, chain
from slm_fn.optim.guard import (
    ScaleState,
    SkipState,
    SpikeState,
    finite,
    guard,
    loss_scale,
    spikes,
)
from slm_fn.optim.transforms import find, params_ema


def counting():
    return Transform(lambda params: torch.zeros(()), lambda updates, state, params: (updates, state + 1))


def walk(tx, norms, state=None):
    """Gradients of the given lengths; which were taken, and the last state."""
    w = {"w": torch.zeros(1)}
    state, taken = tx.init(w) if state is None else state, []
    for norm in norms:
        updates, state = tx.update({"w": torch.tensor([float(norm)])}, state, w)
        taken.append(bool(updates["w"] != 0))
    return taken, state


def test_skipped_steps_are_counted_and_change_no_bit(same):
    tx = guard(chain(counting(), params_ema(0.5)), finite())
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
    tx = guard(counting(), finite(), spikes(factor=3.0, warmup_steps=5))
    taken, state = walk(tx, [1, 1, 100, 1, 1, 1, 1, 1])
    assert taken == [True] * 8  # a hundred came before the fifth
    taken, state = walk(tx, [1] * 5 + [2.9, 4.5, 1, torch.nan, torch.inf, 1, 50])
    assert taken == [True] * 6 + [False, True, False, False, True, False]
    assert state.inner == 8
    assert state.skipped == 4
    assert find(state, SpikeState).num_spikes == 2
    assert find(state, SpikeState).num_updates == 10


def test_the_running_norm_is_the_mean_weighted_by_age():
    norms, decay = [3.0, 1.0, 2.0, 0.5], 0.9
    found = find(walk(guard(counting(), finite(), spikes(100.0, decay)), norms)[1], SpikeState)
    weights = [decay**age for age in range(len(norms))][::-1]
    want = sum(w * n for w, n in zip(weights, norms, strict=True)) / sum(weights)
    assert (found.norm / found.weight).item() == pytest.approx(want, rel=1e-6)


def test_a_lasting_rise_is_let_through_after_a_while():
    taken, _ = walk(guard(counting(), finite(), spikes(factor=3.0, decay=0.9, warmup_steps=5)), [1] * 10 + [10] * 30)
    refused = taken[10:].index(True)
    assert 3 < refused < 15
    assert all(taken[10 + refused :])


def test_the_loss_scale_is_torch_s():
    tx = guard(counting(), loss_scale(init=2.0**10, interval=3))
    norms = [1, 1, torch.inf, 1, 1, 1, 1, 1, 1, torch.nan, torch.nan, 1, 1, 1, 1]
    scale, growth, state = torch.tensor(2.0**10), torch.tensor(0, dtype=torch.int32), None
    for norm in norms:
        taken, state = walk(tx, [norm], state)
        overflow = not torch.isfinite(torch.tensor(float(norm)))
        torch._amp_update_scale_(scale, growth, torch.tensor(float(overflow)), 2.0, 0.5, 3)
        found = find(state, ScaleState)
        assert (found.scale, found.good) == (scale, growth)
        assert taken == [not overflow]
    assert state.inner == 12
    assert state.skipped == 0  # an overflow is how the scale is found


def test_nan_at_the_least_scale_is_a_fault():
    _, state = walk(guard(counting(), loss_scale(init=4.0)), [torch.nan] * 5)
    assert find(state, ScaleState).scale == 1
    assert state.skipped == 3
    _, state = walk(guard(counting(), loss_scale(init=2.0**23, interval=1)), [1] * 5)
    assert find(state, ScaleState).scale == 2.0**24


def test_watches_agree_before_a_step_is_taken():
    tx = guard(counting(), loss_scale(8.0), spikes(3.0, warmup_steps=2))
    taken, state = walk(tx, [1, 1, 1, 9, torch.inf, 1])
    assert taken == [True, True, True, False, False, True]
    assert (state.skipped, find(state, SpikeState).num_spikes, find(state, ScaleState).scale) == (1, 1, 4)


@pytest.mark.parametrize("watches", [(finite(),), (finite(), spikes(3.0, warmup_steps=1)), (loss_scale(interval=2),)])
def test_each_member_is_guarded_on_its_own(watches, same):
    tx, w = guard(counting(), *watches), {"w": torch.ones(2, 3)}
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
    assert find(together, SkipState).inner[0] == 5
