"""pipeline/training/loop.py: intervals, stopping, skipped steps, hooks, resumed logs."""

import itertools
from contextlib import contextmanager

import pytest
import torch

from slm_fn.config import Config
from slm_fn.core.grads import value_and_grad
from slm_fn.optim import recipes
from slm_fn.pipeline.training import loop
from slm_fn.pipeline.training.plan import TrainingPlan
from slm_fn.pipeline.training.run_folder import Interrupted
from slm_fn.pipeline.training.stage import Stage
from slm_fn.train import checkpoint, run_log
from slm_fn.train.config import TrainConfig
from slm_fn.train.display import PlainDisplay
from slm_fn.train.metrics import MACHINE_METRICS
from slm_fn.train.step import step_with

ONES = [torch.ones(2)] * 10
BATCHES = [torch.full((2,), 1.0 + 0.37 * i) for i in range(10)]


def loss(params, x):
    value = (params["w"] - x).square().sum() + params["n"].sum() * 0
    return value, {"weight": torch.tensor(2.0), "num_odd": x[0].long() % 2, "sum": x.sum()}


class RecordedRun:
    """A run of a model with two parameters: what it evaluates, displays and writes."""

    def __init__(self, folder, monkeypatch, batches=ONES, observe=None, lift=None, **changes):
        self.folder, self.batches, self.monkeypatch = folder, batches, monkeypatch
        self.evaluated, self.shown = [], []
        intervals = {"log_every": 1, "eval_every": 4, "save_every": 5, "sample_every": 3}
        settings = TrainConfig(**{"total_steps": 10, "keep": 99, **intervals, **changes})
        tx = recipes.make_optimizer(
            recipes.OptimConfig(warmup_steps=0), 10, lambda path: path == "w"
        )
        step = step_with(tx)(value_and_grad(loss))
        step = step if lift is None else lift(step)
        self.plan = TrainingPlan(
            None, tx, make_step=lambda micro_batches: step, settings=settings, observe=observe
        )

    def evaluate(self, params):
        self.evaluated.append(params)
        return {"val_loss": 1.0 / len(self.evaluated)}

    def init_params(self):
        return {"w": torch.zeros(2), "n": torch.zeros(2)}

    def train(self, stop_at=None):
        """Trains to the end, or until the stop signal that comes during a step."""
        stage = Stage(
            name="t",
            plan=self.plan,
            init_params=self.init_params,
            batch_at=lambda position: self.batches[position],
            evaluate=self.evaluate,
            sample=lambda params: [{"prompt": "a", "text": "b"}],
            model_files={},
            data_hash="data",
            flops_per_token=6,
        )
        display = PlainDisplay("t", 10, seconds=0.0, write=self.shown.append)
        asked = itertools.count(1)

        @contextmanager
        def catch_stop_signals(print_notice):
            yield lambda: next(asked) == stop_at

        self.monkeypatch.setattr(loop, "catch_stop_signals", catch_stop_signals)
        self.monkeypatch.setattr(loop.displays, "make_display", lambda *_: display)
        return loop.train(stage, Config(), self.folder)

    def rows(self):
        return run_log.read_rows(self.folder / run_log.METRICS)

    def lines(self):
        """The lines of metrics.jsonl without the metrics of the machine."""
        return [
            {name: value for name, value in row.items() if name not in MACHINE_METRICS}
            for row in self.rows()
        ]

    def saved(self):
        """What is noted of each checkpoint, oldest first."""
        folders = checkpoint.list_folders(self.folder / "checkpoints")
        return [checkpoint.verify(folder) for folder in reversed(folders)]

    def last_state(self):
        folder, _ = checkpoint.find_newest(self.folder)
        return checkpoint.load(folder, self.plan.init_state(self.init_params()))[0]


@pytest.fixture
def new_run(tmp_path, monkeypatch):
    """`new_run(name, ...)`: a reference_from_batch run in a folder of its own."""

    def make(name="run", *args, **kwargs):
        return RecordedRun(tmp_path / name, monkeypatch, *args, **kwargs)

    return make


def test_everything_happens_at_its_interval(new_run):
    run = new_run()
    result = run.train()
    rows = run.rows()
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert [info.step for info in run.saved()] == [5, 10]
    samples = run_log.read_rows(run.folder / run_log.SAMPLES)
    assert samples == [{"step": step, "prompt": "a", "text": "b"} for step in (3, 6, 9)]
    assert [row["step"] for row in rows if "val_loss" in row] == [4, 8, 10]
    assert result.progress[:3] == (10, 10, 20)
    assert int(run.last_state().step) == 10
    assert rows[0]["lr"] > 0
    assert [row["flops"] for row in rows] == [row["tokens"] * 6 for row in rows]


def test_the_model_is_evaluated_at_its_interval_and_not_at_every_log_line(new_run):
    run = new_run(log_every=6, eval_every=4, save_every=0)
    run.train()
    assert [row["step"] for row in run.rows()] == [4, 6, 8, 10]
    assert [row["step"] for row in run.rows() if "val_loss" in row] == [4, 8, 10]


def test_best_is_the_lowest_validation_loss(new_run):
    run = new_run()
    run.train()
    assert run.saved()[-1].best_val_loss == pytest.approx(1 / 3)


def test_a_checkpoint_notes_the_evaluation_since_the_one_before(new_run):
    run = new_run(save_every=3)
    result = run.train()
    noted = [(info.step, info.metrics.get("val_loss")) for info in run.saved()]
    assert noted == [(3, None), (6, 1.0), (9, 1 / 2), (10, 1 / 3)]
    assert result.metrics == {"val_loss": 1 / 3}


def test_a_stop_saves_at_its_step_and_writes_no_line_of_its_own(new_run):
    run = new_run(log_every=2, save_every=0)
    with pytest.raises(Interrupted, match=r"stopped at step 3 of 10, saved .*step-00000003"):
        run.train(stop_at=3)
    assert [info.step for info in run.saved()] == [3]
    assert [row["step"] for row in run.rows()] == [2]


@pytest.mark.parametrize("stop", range(1, 10))
def test_a_log_that_was_interrupted_anywhere_reads_as_if_it_never_was(new_run, same, stop):
    intervals = {"log_every": 3, "eval_every": 0, "save_every": 4}
    full, resumed = new_run("full", BATCHES, **intervals), new_run("resumed", BATCHES, **intervals)
    full.train()
    with pytest.raises(Interrupted):
        resumed.train(stop_at=stop)
    resumed.train()
    assert resumed.lines() == full.lines()
    assert same(resumed.last_state(), full.last_state())
    assert [row["step"] for row in full.rows()] == [3, 6, 9, 10]


def test_a_run_of_nan_ends_with_advice_and_a_checkpoint_of_the_last_good_state(new_run, same):
    batches = BATCHES[:3] + [torch.full((2,), float("nan"))] * 7
    before = new_run("before", BATCHES, total_steps=3, save_every=0)
    diverging = new_run("diverging", batches, max_skipped=3, save_every=0)
    before.train()
    with pytest.raises(
        FloatingPointError, match=r"step 7: the last 4 steps .*learning_rate.*hooks\.forward to"
    ):
        diverging.train()
    assert [info.step for info in diverging.saved()] == [7]
    assert same(diverging.last_state().params, before.last_state().params)
    assert [row["skipped"] for row in diverging.rows()] == [0, 0, 0, 1, 2, 3, 4]
    assert "57.1% skipped" in diverging.shown[-2]  # and the last line says where it was saved
    assert run_log.read_info(diverging.folder)["status"] == "failed"


def test_single_nan_steps_do_not_end_a_run(new_run):
    nan = torch.full((2,), float("nan"))
    batches = [nan if i % 2 else batch for i, batch in enumerate(BATCHES)]
    run = new_run("run", batches, max_skipped=3)
    run.train()
    assert run.rows()[-1]["skipped"] == 5


def test_hooks_change_nothing_and_run_only_where_a_line_is_due(new_run, same):
    observed = []

    def observe(state, batch):
        observed.append((int(state.step), batch[0].item()))
        return {"acts/final/rms": state.params["w"].square().mean().sqrt()}

    intervals = {"log_every": 4, "eval_every": 0}
    plain = new_run("plain", BATCHES, **intervals)
    hooked = new_run("hooked", BATCHES, observe, **intervals)
    plain.train()
    hooked.train()
    assert same(hooked.last_state(), plain.last_state())
    # Before the step of the line, on the state and the batch of that step.
    assert observed == [(step - 1, BATCHES[step - 1][0].item()) for step in (4, 8, 10)]
    lines = hooked.lines()
    assert all(line.pop("acts/final/rms") > 0 for line in lines)
    assert lines == plain.lines()


def test_a_hooked_line_at_every_step_reports_its_own_step(new_run):
    values = iter([torch.tensor(0.1 * step) for step in range(10)])
    run = new_run("run", BATCHES, lambda state, batch: {"acts/final/rms": next(values)})
    run.train()
    reported = [line["acts/final/rms"] for line in run.lines()]
    assert reported == [float(torch.tensor(0.1 * step)) for step in range(10)]


def test_nothing_is_read_from_the_device_between_lines(new_run, monkeypatch):
    """A tensor's value is read only where a line is due or a checkpoint is saved."""
    reads, counts = [], []

    def count_reads(step):
        def counting_step(state, batch):
            counts.append(len(reads))
            return step(state, batch)

        return counting_step

    silent = {"eval_every": 0, "save_every": 0, "sample_every": 0}
    run = new_run(
        "run", [torch.ones(2)] * 100, lift=count_reads, total_steps=100, log_every=50, **silent
    )
    for name in ("tolist", "item", "__float__", "__int__", "__bool__"):
        method = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda x, n=name, f=method: reads.append(n) or f(x))
    run.train()
    assert len(set(counts[:50])) == 1
    assert len(set(counts[50:])) == 1
    assert counts[50] > counts[49]


def test_a_finished_run_takes_no_step(new_run, same):
    steps = []
    run = new_run("run", lift=lambda step: lambda *args: steps.append(1) or step(*args))
    first = run.train()
    state = run.last_state()
    again = run.train()
    assert len(steps) == 10
    assert same(run.last_state(), state)
    assert again.progress.step == first.progress.step == 10
    assert again.checkpoint == first.checkpoint


def test_out_of_memory_is_displayed(new_run):
    run = new_run("run")
    step = run.plan.step

    def make_step(micro_batches):
        def first_step_halves(state, batch):
            if micro_batches.count == 1:
                micro_batches.double(num_rows=2)
            return step(state, batch)

        return first_step_halves

    run.plan = run.plan._replace(make_step=make_step)
    run.train()
    assert run.shown.count("t: out of memory with 2 rows at a time: 1 from here on") == 1
