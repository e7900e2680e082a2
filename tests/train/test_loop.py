"""train/loop.py: intervals, stopping, skipped steps, hooks, and the state that is judged."""

import msgspec
import pytest
import torch

from slm_fn.core import tree
from slm_fn.core.grads import value_and_grad
from slm_fn.optim import recipes
from slm_fn.train import loop, runlog
from slm_fn.train.meter import OF_THE_MACHINE, Gathered, Progress
from slm_fn.train.step import init_state, step_with


class Recorder:
    """Keeps what a loop sends out; asks it to stop at a step."""

    def __init__(self, stop_at=None):
        self.rows, self.saved, self.states, self.sampled, self.evaluated = [], [], [], [], []
        self.stop_at, self.asked = stop_at, 0
        self.shown = []

    def stopping(self):
        self.asked += 1
        return self.asked == self.stop_at

    def save(self, state, progress, metrics):
        self.saved.append((int(state.step), progress, metrics))
        self.states.append(state)
        return "there"

    def outlets(self):
        return loop.Outlets(
            self.rows.append,
            lambda params: self.evaluated.append(params) or {"val_loss": 1.0 / len(self.evaluated)},
            lambda params, step: self.sampled.append(step),
            self.save,
            self.stopping,
            runlog.Plain("t", 10, seconds=0.0, write=self.shown.append),
        )

    def lines(self):
        return [{name: value for name, value in row.items() if name not in OF_THE_MACHINE} for row in self.rows]


def setup(**changes):
    settings = loop.TrainConfig(
        **{"total_steps": 10, "log_every": 1, "eval_every": 4, "save_every": 5, "sample_every": 3, **changes}
    )
    tx = recipes.make(recipes.OptimConfig(warmup_steps=0), 10, lambda path: path == "w")

    def loss(params, x):
        value = (params["w"] - x).square().sum() + params["n"].sum() * 0
        return value, {"weight": torch.tensor(2.0), "num_odd": x[0].long() % 2, "sum": x.sum()}

    state = init_state({"w": torch.zeros(2), "n": torch.zeros(2)}, tx)
    return settings, step_with(tx)(value_and_grad(loss)), state


def go(recorder, batches=None, progress=None, state=None, observe=None, **changes):
    settings, step, fresh = setup(**changes)
    batches = batches or [torch.ones(2)] * 10
    state = fresh if state is None else state
    return loop.fit(step, state, iter(batches), settings, progress or Progress(), recorder.outlets(), observe, 6)


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
    assert [row["flops"] for row in seen.rows] == [row["tokens"] * 6 for row in seen.rows]


def test_the_model_is_judged_when_asked_and_not_at_log_lines_alone():
    seen = Recorder()
    go(seen, log_every=6, eval_every=4, save_every=0)
    assert [row["step"] for row in seen.rows] == [4, 6, 8, 10]
    assert [row["step"] for row in seen.rows if "val_loss" in row] == [4, 8, 10]


def test_best_is_the_lowest_validation_loss():
    seen = Recorder()
    go(seen)
    assert seen.saved[-1][1].best == pytest.approx(1 / 3)


def test_a_stop_saves_where_it_is_and_writes_no_line_of_its_own():
    seen = Recorder(stop_at=3)
    _, progress = go(seen, log_every=2, save_every=0)
    assert progress.step == 3
    assert [step for step, _, _ in seen.saved] == [3]
    assert [row["step"] for row in seen.rows] == [2]


BATCHES = [torch.full((2,), 1.0 + 0.37 * i) for i in range(10)]


@pytest.mark.parametrize("stop", range(1, 10))
def test_a_diary_that_was_interrupted_anywhere_reads_as_if_it_never_was(stop):
    every = {"log_every": 3, "eval_every": 0, "save_every": 4}
    whole, first, second = Recorder(), Recorder(stop_at=stop), Recorder()
    go(whole, BATCHES, **every)
    state, _ = go(first, BATCHES, **every)
    _, kept, _ = first.saved[-1]
    text = msgspec.json.encode(kept.gathered)  # as a checkpoint keeps it
    kept = kept._replace(gathered=msgspec.json.decode(text, type=Gathered))
    go(second, BATCHES[stop:], kept, state, **every)
    assert first.lines() + second.lines() == whole.lines()
    assert [row["step"] for row in whole.rows] == [3, 6, 9, 10]


def test_a_run_of_nan_ends_with_advice_and_a_checkpoint_of_the_last_good_state(same):
    good, bad = BATCHES[:3], [torch.full((2,), float("nan"))] * 7
    before, seen = Recorder(), Recorder()
    after_three, _ = go(before, good, total_steps=3, save_every=0)
    with pytest.raises(FloatingPointError, match=r"step 7: the last 4 steps .*learning_rate.*hooks\.forward to"):
        go(seen, good + bad, max_skipped=3, save_every=0)
    assert [step for step, _, _ in seen.saved] == [7]
    assert same(seen.states[-1].params, after_three.params)
    assert [row["skipped"] for row in seen.rows] == [0, 0, 0, 1, 2, 3, 4]
    assert "57.1% skipped" in seen.shown[-2]  # and the last says where it was saved


def test_single_nan_steps_do_not_end_a_run():
    nan = torch.full((2,), float("nan"))
    seen = Recorder()
    go(seen, [nan if i % 2 else batch for i, batch in enumerate(BATCHES)], max_skipped=3)
    assert seen.rows[-1]["skipped"] == 5


def test_hooks_change_nothing_and_run_only_where_a_line_is_due(same):
    asked = []

    def observe(state, batch):
        asked.append((int(state.step), batch[0].item()))
        return {"acts/final/rms": state.params["w"].square().mean().sqrt()}

    plain, hooked = Recorder(), Recorder()
    every = {"log_every": 4, "eval_every": 0}
    one, _ = go(plain, BATCHES, **every)
    two, _ = go(hooked, BATCHES, observe=observe, **every)
    assert same(one, two)
    # Before the step that the line tells of, from the state and the batch of that step.
    assert asked == [(step - 1, BATCHES[step - 1][0].item()) for step in (4, 8, 10)]
    assert all(row.pop("acts/final/rms") > 0 for row in hooked.rows)
    assert hooked.lines() == plain.lines()


def test_nothing_is_read_from_the_device_between_lines(monkeypatch):
    """A tensor's value is asked for only where a line is due or a checkpoint is saved."""
    read = []
    for name in ("tolist", "item", "__float__", "__int__", "__bool__"):
        true = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda x, n=name, f=true: read.append(n) or f(x))
    settings, step, state = setup(total_steps=100, log_every=50, eval_every=0, save_every=0, sample_every=0)
    counts = []

    def counting(state, batch):
        counts.append(len(read))
        return step(state, batch)

    loop.fit(counting, state, iter([torch.ones(2)] * 100), settings, Progress(), Recorder().outlets())
    assert len(set(counts[:50])) == 1
    assert len(set(counts[50:])) == 1
    assert counts[50] > counts[49]


def test_a_loop_without_batches_changes_nothing():
    settings, step, state = setup()
    done, progress = loop.fit(step, state, iter(()), settings, Progress(step=10), Recorder().outlets())
    assert done is state
    assert progress.step == 10


def test_the_averaged_parameters_are_judged():
    tx = recipes.make(recipes.OptimConfig(ema_decay=0.9), 10, lambda path: path == "w")
    state = init_state({"w": torch.ones(2)}, tx)
    state = state._replace(params=tree.map(lambda w: w * 2, state.params))
    assert torch.equal(loop.trained(state)["w"], torch.ones(2))
