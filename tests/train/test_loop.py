"""train/loop.py: intervals, stopping, skipped steps, and the state that is judged."""

import pytest
import torch

from slm_fn.core.grads import value_and_grad
from slm_fn.optim import recipes
from slm_fn.train import loop, runlog
from slm_fn.train.step import init_state, step_with


class Recorder:
    """Keeps what a loop sends out."""

    def __init__(self, stop_at=None):
        self.rows, self.saved, self.sampled, self.evaluated = [], [], [], []
        self.stop_at = stop_at
        self.shown = []

    def outlets(self):
        return loop.Outlets(
            self.rows.append,
            lambda params: self.evaluated.append(params) or {"val_loss": 1.0 / len(self.evaluated)},
            lambda params, step: self.sampled.append(step),
            lambda state, progress, metrics: self.saved.append((int(state.step), progress, metrics)) or "there",
            lambda: self.stop_at is not None and len(self.rows) + 1 >= self.stop_at,
            runlog.Plain("t", 10, write=self.shown.append),
        )


def setup(**changes):
    settings = loop.TrainConfig(
        **{"total_steps": 10, "log_every": 1, "eval_every": 4, "save_every": 5, "sample_every": 3, **changes}
    )
    tx = recipes.make(recipes.OptimConfig(warmup_steps=0), 10, lambda path: path == "w")
    loss = lambda p, x: ((p["w"] - x).square().sum(), {"weight": torch.tensor(2.0)})  # noqa: E731
    state = init_state({"w": torch.zeros(2), "n": torch.zeros(2)}, tx)
    return (
        settings,
        step_with(tx)(value_and_grad(lambda p, x: (loss(p, x)[0] + p["n"].sum() * 0, loss(p, x)[1]))),
        state,
    )


def go(recorder, batches=None, **changes):
    settings, step, state = setup(**changes)
    batches = batches or [torch.ones(2)] * 10
    return loop.fit(step, state, iter(batches), settings, loop.Progress(), recorder.outlets())


def test_everything_happens_at_its_interval():
    seen = Recorder()
    state, progress = go(seen)
    assert [row["step"] for row in seen.rows] == list(range(1, 11))
    assert [step for step, _, _ in seen.saved] == [5, 10]
    assert seen.sampled == [3, 6, 9]
    assert [row["step"] for row in seen.rows if "val_loss" in row] == [4, 8, 10]
    assert progress[:3] == (10, 10, 20)
    assert int(state.step) == 10
    assert seen.rows[0]["lr"] > 0


def test_best_is_the_lowest_validation_loss():
    seen = Recorder()
    go(seen)
    assert seen.saved[-1][1].best == pytest.approx(1 / 3)


def test_a_stop_saves_where_it_is():
    seen = Recorder(stop_at=3)
    _, progress = go(seen, log_every=1)
    assert progress.step == 3
    assert [step for step, _, _ in seen.saved] == [3]


def test_too_many_nan_steps_end_the_run_with_advice():
    with pytest.raises(FloatingPointError, match="learning_rate"):
        go(Recorder(), [torch.full((2,), float("nan"))] * 10, max_skipped=3)


def test_a_loop_without_batches_changes_nothing():
    settings, step, state = setup()
    done, progress = loop.fit(step, state, iter(()), settings, loop.Progress(step=10), Recorder().outlets())
    assert done is state
    assert progress.step == 10
