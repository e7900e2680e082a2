"""train/metrics.py: means by weight, counts, shares, rates, and what a line leaves out."""

import math

import pytest
import torch

from slm_fn.optim import recipes
from slm_fn.train.metrics import MetricsAccumulator, Progress
from slm_fn.train.step import init_state

STATE = init_state(
    {"w": torch.ones(2)},
    recipes.make_optimizer(recipes.OptimConfig(), 10, lambda path: path == "w"),
)


def step(loss, weight, **more):
    named = {"loss": loss, "weight": float(weight), **more}
    return {name: torch.tensor(value) for name, value in named.items()}


def line(*steps, **given):
    meter = MetricsAccumulator(Progress(), **given)
    for metrics in steps:
        meter.add(metrics)
    return meter.close_line(STATE), meter


def test_a_line_tells_means_by_weight_and_totals_of_counts():
    row, meter = line(
        step(2.0, 30, grad_norm=1.0, num_rows=4),
        step(5.0, 10, grad_norm=3.0, num_rows=2),
        flops_per_token=7,
    )
    assert row["train_loss"] == pytest.approx((2 * 30 + 5 * 10) / 40)
    assert row["grad_norm"] == pytest.approx(1.5)
    assert (row["step"], row["tokens"], row["flops"], row["num_rows"]) == (2, 40, 280, 6)
    assert "weight" not in row
    assert "num_rows" not in line(step(1.0, 1))[0]
    meter.add(step(1.0, 10))
    assert meter.close_line(STATE)["train_loss"] == 1.0  # a line starts anew


def test_tokens_are_told_where_weight_counts_something_else():
    assert line(step(1.0, 2, tokens=50.0))[0]["tokens"] == 50


def test_routes_are_shares_too():
    row, _ = line(*[step(1.0, 1, num_lite=6, num_expert=3, num_dropped=1, balance=1.0)] * 2)
    assert (row["num_lite"], row["num_expert"], row["num_dropped"]) == (12, 6, 2)
    assert (row["lite_share"], row["expert_share"], row["dropped_share"]) == (0.6, 0.3, 0.1)


def test_a_step_that_is_not_finite_does_not_spoil_the_mean():
    row, _ = line(step(2.0, 10, grad_norm=1.0), step(math.nan, 10, grad_norm=math.inf))
    assert (row["train_loss"], row["grad_norm"], row["tokens"]) == (2.0, 1.0, 20)
    row, meter = line(step(math.nan, 10))
    assert row.get("train_loss") is None
    assert math.isnan(meter.smoothed_loss)


def test_what_hooks_saw_and_what_the_optimizer_measures_join_the_line():
    row, _ = line(step(1.0, 1), step(1.0, 1, **{"acts/0/ffn/rms": 0.5}))
    assert row["acts/0/ffn/rms"] == 0.5
    assert {"clip_factor", "skipped", "lr"} <= row.keys()


def test_judging_and_saving_are_no_training_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    meter = MetricsAccumulator(Progress())

    def batches():
        for i in range(2):
            now[0] += 0.5  # the loop waits for this one
            yield i

    for _ in meter.timed(batches()):
        now[0] += 1.5
        meter.add(step(1.0, 8))
    with meter.paused():
        now[0] += 6.0
    row = meter.close_line(STATE)
    assert row["seconds"] == 10.0
    assert row["tok_per_s"] == 4.0
    assert row["data_wait"] == 0.25
    assert row["peak_memory_mib"] > 10


def test_the_best_is_the_lowest():
    meter = MetricsAccumulator(Progress(best_val_loss=2.0))
    for value in ({"val_loss": 3.0}, {}, {"val_loss": 1.5}, {"val_loss": 1.7}):
        meter.record_evaluation(value)
    assert meter.progress.best_val_loss == 1.5
