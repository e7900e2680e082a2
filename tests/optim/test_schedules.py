"""Schedules at their corners, and as tensors: they trace and vmap."""

import math

import pytest
import torch

from slm_fn.optim.schedules import constant, warmup_cosine, warmup_stable_decay


def at(schedule, *counts):
    return [schedule(torch.tensor(float(n))).item() for n in counts]


def close(got, want):
    return got == pytest.approx(want, abs=1e-6)


def test_cosine_at_its_corners():
    schedule = warmup_cosine(2.0, 4, 24, floor=0.1)
    assert close(at(schedule, 0, 1, 3, 4), [0.5, 1.0, 2.0, 2.0])  # up in four updates
    assert close(at(schedule, 14, 24, 99), [2 * (0.1 + 0.9 / 2), 0.2, 0.2])  # half way, the floor, and beyond
    assert close(at(schedule, 9), [2 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)])


def test_stable_decay_at_its_corners():
    schedule = warmup_stable_decay(2.0, 4, 20, decay_fraction=0.25, floor=0.1)
    assert close(at(schedule, 0, 3, 4, 15), [0.5, 2.0, 2.0, 2.0])
    assert close(at(schedule, 16, 17.5, 20, 99), [2 * (0.1 + 0.9 * 0.8), 2 * (0.1 + 0.9 * 0.5), 0.2, 0.2])


@pytest.mark.parametrize("make", [warmup_cosine, warmup_stable_decay])
def test_no_warmup_and_the_shortest_run(make):
    assert close(at(make(1.0, 0, 10), 0), [1.0])
    assert close(at(make(1.0, 0, 1), 0, 1), [1.0, 0.0])
    assert all(0 < rate <= 1 for rate in at(make(1.0, 20, 10), *range(10)))  # warmup longer than the run


def test_constant_is_constant():
    assert close(at(constant(0.3), 0, 5, 1e6), [0.3] * 3)


@pytest.mark.parametrize("schedule", [constant(0.3), warmup_cosine(1.0, 2, 9), warmup_stable_decay(1.0, 2, 9)])
def test_schedules_commute_with_vmap(schedule):
    counts = torch.arange(12.0)
    assert torch.equal(torch.func.vmap(schedule)(counts), torch.stack([schedule(n) for n in counts]))
