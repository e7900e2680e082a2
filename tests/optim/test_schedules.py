"""Schedules at their corner points, against torch's, and under vmap."""

import math

import pytest
import torch
from torch.optim import lr_scheduler

from slm_fn.optim.schedules import (
    constant,
    one_cycle,
    one_cycle_fraction,
    warmup_cosine,
    warmup_linear,
    warmup_stable_decay,
)


def at(schedule, *counts):
    return [schedule(torch.tensor(float(n))).item() for n in counts]


def close(got, want):
    return got == pytest.approx(want, abs=1e-6)


def test_cosine_at_its_corner_points():
    schedule = warmup_cosine(2.0, 4, 24, min_lr_ratio=0.1)
    assert close(at(schedule, 0, 1, 3, 4), [0.5, 1.0, 2.0, 2.0])  # warmup in four updates
    assert close(
        at(schedule, 14, 24, 99), [2 * (0.1 + 0.9 / 2), 0.2, 0.2]
    )  # halfway, the minimum, and beyond
    assert close(at(schedule, 9), [2 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)])


def test_stable_decay_at_its_corner_points():
    schedule = warmup_stable_decay(2.0, 4, 20, decay_fraction=0.25, min_lr_ratio=0.1)
    assert close(at(schedule, 0, 3, 4, 15), [0.5, 2.0, 2.0, 2.0])
    assert close(
        at(schedule, 16, 17.5, 20, 99), [2 * (0.1 + 0.9 * 0.8), 2 * (0.1 + 0.9 * 0.5), 0.2, 0.2]
    )


@pytest.mark.parametrize("make", [warmup_cosine, warmup_linear, warmup_stable_decay])
def test_no_warmup_and_the_shortest_run(make):
    assert close(at(make(1.0, 0, 10), 0), [1.0])
    assert close(at(make(1.0, 0, 1), 0, 1), [1.0, 0.0])
    assert all(
        0 < rate <= 1 for rate in at(make(1.0, 20, 10), *range(10))
    )  # warmup longer than the run


def test_constant_is_constant():
    assert close(at(constant(0.3), 0, 5, 1e6), [0.3] * 3)
    assert close(at(constant(0.3, 3), 0, 1, 2, 3), [0.1, 0.2, 0.3, 0.3])


def test_the_sqrt_decay_falls_faster_at_first():
    schedule = warmup_stable_decay(2.0, 4, 20, decay_fraction=0.5, min_lr_ratio=0.1, shape="sqrt")
    assert close(at(schedule, 10, 20), [2.0, 0.2])
    assert close(at(schedule, 12.5), [2 * (0.1 + 0.9 * 0.5)])


def torch_s(num, make, momentum=0.0):
    """The rates, and the momenta, of a torch scheduler at each of its steps."""
    peer = torch.optim.SGD([torch.zeros(1)], lr=2.0, momentum=momentum)
    schedule, rates, momenta = make(peer), [], []
    for _ in range(num):
        rates.append(peer.param_groups[0]["lr"])
        momenta.append(peer.param_groups[0]["momentum"])
        peer.step()
        schedule.step()
    return rates, momenta


def test_linear_equals_torch_s():
    def make(peer):
        up = lr_scheduler.LinearLR(peer, 1 / 4, 1.0, total_iters=3)
        down = lr_scheduler.LinearLR(peer, 1.0, 0.1, total_iters=16)
        return lr_scheduler.SequentialLR(peer, [up, down], milestones=[4])

    assert close(at(warmup_linear(2.0, 4, 20, min_lr_ratio=0.1), *range(24)), torch_s(24, make)[0])


def test_cosine_equals_torch_s():
    def make(peer):
        up = lr_scheduler.LinearLR(peer, 1 / 4, 1.0, total_iters=3)
        down = lr_scheduler.CosineAnnealingLR(peer, 16, eta_min=0.2)
        return lr_scheduler.SequentialLR(peer, [up, down], milestones=[4])

    assert close(at(warmup_cosine(2.0, 4, 20, min_lr_ratio=0.1), *range(20)), torch_s(20, make)[0])


@pytest.mark.parametrize(("total", "rise"), [(20, 0.3), (50, 0.25), (12, 0.5)])
def test_one_cycle_equals_torch_s(total, rise):
    def make(peer):
        return lr_scheduler.OneCycleLR(peer, 2.0, total_steps=total, pct_start=rise)

    rates, momenta = torch_s(total, make, 0.9)
    assert close(at(one_cycle(2.0, total, rise), *range(total)), rates)
    assert close(
        [0.95 - 0.1 * fraction for fraction in at(one_cycle_fraction(total, rise), *range(total))],
        momenta,
    )
    assert close(
        at(one_cycle(2.0, total, rise, min_lr_ratio=0.5), total - 1, total, 999), [1.0] * 3
    )


def test_one_cycle_of_a_step_or_two():
    for total in (1, 2, 3):
        assert all(0 < rate <= 1 for rate in at(one_cycle(1.0, total), *range(total)))


ALL = [
    lambda peak: constant(peak, 2),
    lambda peak: warmup_cosine(peak, 2, 9),
    lambda peak: warmup_linear(peak, 2, 9),
    lambda peak: warmup_stable_decay(peak, 2, 9),
    lambda peak: one_cycle(peak, 9),
]


@pytest.mark.parametrize("make", ALL)
def test_schedules_commute_with_vmap(make):
    counts = torch.arange(12.0)
    assert torch.equal(
        torch.func.vmap(make(0.3))(counts), torch.stack([make(0.3)(n) for n in counts])
    )
    peaks = torch.tensor([0.1, 0.3, 1.0])
    together = torch.func.vmap(lambda peak: make(peak)(torch.tensor(5.0)))(peaks)
    assert close(together.tolist(), [at(make(peak.item()), 5)[0] for peak in peaks])
