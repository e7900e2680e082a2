"""pipeline/reports/charts.py: default charts, their numbers, smoothing, bounds."""

import numpy as np
import pytest

from slm_fn.pipeline.reports import charts
from slm_fn.pipeline.reports.runs import Run


def make_run(tmp_path, name, num_rows=100, **metrics):
    rows = []
    for i in range(1, num_rows + 1):
        row = {
            "step": 10 * i,
            "tokens": 640 * i,
            "seconds": 0.5 * i,
            "train_loss": 4.0 - i / 50,
            "lr": 0.1,
            **metrics,
        }
        if i % 20 == 0:
            row["val_loss"] = 5.0 - i / 50
        rows.append(row)
    return Run(tmp_path / name, {}, rows)


def test_the_default_charts_of_one_run_are_loss_learning_rate_and_gradient_norm(tmp_path):
    names, made = charts.make_charts([make_run(tmp_path, "a", grad_norm=1.0)])
    assert names == ["a"]
    assert [chart.title for chart in made] == ["Loss by steps", "Learning rate", "Gradient norm"]
    curves = {curve.kind: curve for curve in made[0].curves}
    assert list(curves) == ["raw", "smooth", "points"]
    assert curves["raw"].x.tolist() == [10.0 * i for i in range(1, 101)]
    assert curves["raw"].y[:2].tolist() == [3.98, 3.96]
    assert curves["points"].x.tolist() == [200.0, 400.0, 600.0, 800.0, 1000.0]
    assert [curve.kind for curve in made[1].curves] == ["smooth"]  # a schedule is not averaged


def test_several_runs_are_compared_on_every_axis_that_one_of_them_has(tmp_path):
    runs = [make_run(tmp_path, "x/a"), make_run(tmp_path, "x/b", flops=1e9)]
    names, made = charts.make_charts(runs)
    assert names == ["a", "b"]
    assert [chart.x_label for chart in made] == ["steps", "tokens", "seconds", "FLOPs"]
    assert {curve.run for curve in made[0].curves} == {0, 1}
    assert {curve.run for curve in made[3].curves} == {1}


def test_requested_keys_and_axes_are_drawn(tmp_path):
    metrics = {"acts/0/ffn/rms": 1.0, "acts/final/rms": 2.0, "grad_norm": 1.0}
    run = make_run(tmp_path, "a", **metrics)
    _, made = charts.make_charts([run], ["tokens"], ["acts/", "grad_norm"], log_y=True)
    assert [chart.title for chart in made] == [
        "Loss by tokens",
        "acts/0/ffn/rms",
        "acts/final/rms",
        "Gradient norm",
    ]
    assert [chart.log_y for chart in made] == [True, False, False, False]
    with pytest.raises(ValueError, match="has 'act'; they have step, tokens"):
        charts.make_charts([make_run(tmp_path, "b")], keys=["act"])
    with pytest.raises(ValueError, match="counts flops; they have steps, tokens, seconds"):
        charts.make_charts([run], ["flops"])
    with pytest.raises(ValueError, match="no lines in its metrics"):
        charts.make_charts([Run(tmp_path, {}, [])])


def test_rows_without_a_number_are_skipped(tmp_path):
    run = make_run(tmp_path, "a", num_rows=4)
    run.rows[1]["train_loss"] = None
    (chart, *_) = charts.make_charts([run])[1]
    assert chart.curves[0].x.tolist() == [10.0, 30.0, 40.0]


def test_smoothing_preserves_constants_and_lines_and_does_not_lag():
    assert np.allclose(charts.smooth(np.full(50, 3.0), 5.0), 3.0)
    line = np.arange(100.0)
    assert np.allclose(charts.smooth(line, 4.0)[20:80], line[20:80])
    impulse = np.zeros(101)
    impulse[50] = 1.0
    assert charts.smooth(impulse, 6.0).argmax() == 50
    noise = np.random.default_rng(0).normal(size=2000)
    assert charts.smooth(noise, 20.0).std() < 0.3 * noise.std()


def test_a_spike_of_the_raw_curve_may_be_outside_the_bounds(tmp_path):
    run = make_run(tmp_path, "a")
    run.rows[50]["train_loss"] = 1000.0
    (chart, *_) = charts.make_charts([run], log_y=True)[1]
    low, high = charts.y_bounds(chart)
    assert 0 < low < 2.0
    assert 5 - 20 / 50 < high < 400
    (constant,) = charts.make_charts([make_run(tmp_path, "b")], keys=["lr"])[1][1:]
    assert charts.y_bounds(constant) == (0.1 - 0.5, 0.1 + 0.5)
