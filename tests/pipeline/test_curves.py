"""pipeline/curves.py: which diagrams are drawn, of which numbers, and what smoothing and thinning leave of them."""

import numpy as np
import pytest

from slm_fn.pipeline import curves
from slm_fn.pipeline.runs import Run


def run(tmp_path, name, n=100, **more):
    rows = []
    for i in range(1, n + 1):
        row = {"step": 10 * i, "tokens": 640 * i, "seconds": 0.5 * i, "train_loss": 4.0 - i / 50, "lr": 0.1, **more}
        rows.append(row | ({"val_loss": 5.0 - i / 50} if i % 20 == 0 else {}))
    return Run(tmp_path / name, {}, rows)


def test_one_run_is_its_loss_rate_and_gradient(tmp_path):
    names, charts = curves.charts([run(tmp_path, "a", grad_norm=1.0)])
    assert names == ["a"]
    assert [chart.title for chart in charts] == ["Loss by steps", "Learning rate", "Gradient norm"]
    kinds = {curve.kind: curve for curve in charts[0].curves}
    assert list(kinds) == ["raw", "smooth", "points"]
    assert kinds["raw"].x.tolist() == [10.0 * i for i in range(1, 101)]
    assert kinds["raw"].y[:2].tolist() == [3.98, 3.96]
    assert kinds["points"].x.tolist() == [200.0, 400.0, 600.0, 800.0, 1000.0]
    assert [curve.kind for curve in charts[1].curves] == ["smooth"]  # a schedule is not averaged


def test_several_runs_are_compared_by_all_they_count(tmp_path):
    runs = [run(tmp_path, "x/a"), run(tmp_path, "x/b", flops=1e9)]
    names, charts = curves.charts(runs)
    assert names == ["a", "b"]
    assert [chart.x for chart in charts] == ["steps", "tokens", "seconds", "FLOPs"]
    assert {curve.run for curve in charts[0].curves} == {0, 1}
    assert {curve.run for curve in charts[3].curves} == {1}


def test_keys_and_axes_are_as_asked(tmp_path):
    one = run(tmp_path, "a", **{"acts/0/ffn/rms": 1.0, "acts/final/rms": 2.0, "grad_norm": 1.0})
    _, charts = curves.charts([one], ["tokens"], ["acts/", "grad_norm"], log_y=True)
    assert [chart.title for chart in charts] == ["Loss by tokens", "acts/0/ffn/rms", "acts/final/rms", "Gradient norm"]
    assert [chart.log_y for chart in charts] == [True, False, False, False]
    with pytest.raises(ValueError, match="has 'act'; they have step, tokens"):
        curves.charts([run(tmp_path, "b")], keys=["act"])
    with pytest.raises(ValueError, match="counts flops; there are steps, tokens, seconds"):
        curves.charts([one], ["flops"])
    with pytest.raises(ValueError, match="no lines in its metrics"):
        curves.charts([Run(tmp_path, {}, [])])


def test_lines_without_a_number_are_left_out(tmp_path):
    one = run(tmp_path, "a", n=4)
    one.rows[1]["train_loss"] = None
    (chart, *_) = curves.charts([one])[1]
    assert chart.curves[0].x.tolist() == [10.0, 30.0, 40.0]


def test_smoothing_keeps_what_is_level_or_straight_and_does_not_lag():
    assert np.allclose(curves.smooth(np.full(50, 3.0), 5.0), 3.0)
    straight = np.arange(100.0)
    assert np.allclose(curves.smooth(straight, 4.0)[20:80], straight[20:80])
    bump = np.zeros(101)
    bump[50] = 1.0
    assert curves.smooth(bump, 6.0).argmax() == 50
    noise = np.random.default_rng(0).normal(size=2000)
    assert curves.smooth(noise, 20.0).std() < 0.3 * noise.std()


def test_a_spike_of_the_thin_curve_may_leave_the_picture(tmp_path):
    spiked = run(tmp_path, "a")
    spiked.rows[50]["train_loss"] = 1000.0
    (chart, *_) = curves.charts([spiked], log_y=True)[1]
    low, high = curves.bounds(chart)
    assert 0 < low < 2.0
    assert 5 - 20 / 50 < high < 400
    (level,) = curves.charts([run(tmp_path, "b")], keys=["lr"])[1][1:]
    assert curves.bounds(level) == (0.1 - 0.5, 0.1 + 0.5)
