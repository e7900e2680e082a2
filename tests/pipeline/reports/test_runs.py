"""pipeline/reports/runs.py: summaries of running, ended and killed runs."""

import json
import os

import pytest

from slm_fn.pipeline.reports import runs
from slm_fn.train import run_log

NOW = 1_800_000_000.0


def write_run(root, name, rows=(), age=0.0, **info):
    path = root / name
    path.mkdir(parents=True)
    defaults = {
        "stage": "pretrain",
        "started": "2026-01-01",
        "total_steps": 100,
        "status": "running",
        "device": "cpu",
    }
    (path / run_log.RUN_INFO).write_text(json.dumps(defaults | info))
    for row in rows:
        run_log.append(path / run_log.METRICS, row)
    for file in path.iterdir():
        os.utime(file, (NOW - age, NOW - age))
    return path


def make_rows(*steps, seconds_per_step=1.0):
    return [
        {
            "step": step,
            "tokens": 64 * step,
            "train_loss": 5 - step / 50,
            "tok_per_s": 100.0 + step,
            "seconds": step * seconds_per_step,
        }
        for step in steps
    ]


def test_a_summary_has_progress_losses_and_speed(tmp_path):
    rows = make_rows(10, 20, 30)
    rows[0] |= {"val_loss": 3.0}
    rows[1] |= {"val_loss": 3.5, "skipped": 2, "train_loss": None}
    write_run(tmp_path, "a/pretrain", rows, age=60.0, hook_list=["forward/*/rms"])
    (row,) = runs.summarize(runs.find(tmp_path), NOW)
    assert (row["step"], row["total_steps"], row["tokens"], row["device"]) == (30, 100, 1920, "cpu")
    assert (row["val_loss"], row["best_val_loss"], row["train_loss"]) == (3.5, 3.0, 5 - 30 / 50)
    assert (row["tok_per_s"], row["seconds"], row["age_seconds"]) == (120.0, 30.0, 60.0)
    assert row["hooks"] == ["forward/*/rms"]


@pytest.mark.parametrize(
    ("recorded", "steps", "seconds_per_step", "age", "status"),
    [
        ("running", (10, 20), 1.0, 30.0, "running"),
        ("running", (10, 20), 1.0, 600.0, "stopped"),  # killed before it could record its end
        ("running", (10, 20), 60.0, 600.0, "running"),  # writes a line every ten minutes
        ("running", (), 1.0, 30.0, "running"),
        ("running", (90, 100), 1.0, 9000.0, "done"),
        ("stopped", (10,), 1.0, 1.0, "stopped"),
        ("failed", (10,), 1.0, 1.0, "failed"),
        ("done", (100,), 1.0, 1.0, "done"),
    ],
)
def test_the_status_of_a_killed_run_follows_from_its_last_line(
    tmp_path, recorded, steps, seconds_per_step, age, status
):
    rows = make_rows(*steps, seconds_per_step=seconds_per_step)
    run = runs.read(write_run(tmp_path, "run", rows, age, status=recorded))
    assert runs.status(run, NOW) == status


def test_runs_of_earlier_versions_are_read(tmp_path):
    path = write_run(tmp_path, "old", make_rows(10), age=1e6)
    (path / run_log.RUN_INFO).write_text(json.dumps({"stage": "sft", "started": "2025"}))
    row = runs.summarize(runs.find(tmp_path), NOW)[0]
    assert (row["status"], row["total_steps"], row["stage"]) == ("stopped", None, "sft")


def test_other_folders_and_broken_runs_are_errors(tmp_path):
    with pytest.raises(ValueError, match="not a run folder"):
        runs.read(tmp_path)
    (write_run(tmp_path, "broken") / run_log.RUN_INFO).write_text("{")
    with pytest.raises(ValueError, match=r"broken/run\.json"):
        runs.read(tmp_path / "broken")
    assert runs.find(tmp_path / "nowhere") == []


def test_short_names_omit_the_folders_that_all_runs_share(tmp_path):
    both = [runs.read(write_run(tmp_path, name)) for name in ("x/a/sft", "x/b/sft")]
    assert runs.short_names(both) == ["a/sft", "b/sft"]
    assert runs.short_names(both[:1]) == ["sft"]
