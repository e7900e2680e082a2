"""pipeline/runs.py: what a table says of runs that are done, running, stopped, failed and killed."""

import json
import os

import pytest

from slm_fn.pipeline import runs
from slm_fn.train import runlog

NOW = 1_800_000_000.0


def write(root, name, rows=(), age=0.0, **told):
    path = root / name
    path.mkdir(parents=True)
    told = {
        "stage": "pretrain",
        "started": "2026-01-01",
        "total_steps": 100,
        "status": "running",
        "device": "cpu",
    } | told
    (path / runlog.RUN).write_text(json.dumps(told))
    for row in rows:
        runlog.append(path / runlog.METRICS, row)
    for file in path.iterdir():
        os.utime(file, (NOW - age, NOW - age))
    return path


def lines(*steps, every=1.0):
    return [
        {"step": n, "tokens": 64 * n, "train_loss": 5 - n / 50, "tok_per_s": 100.0 + n, "seconds": n * every}
        for n in steps
    ]


def test_a_row_says_how_far_how_well_how_fast(tmp_path):
    rows = lines(10, 20, 30)
    rows[0] |= {"val_loss": 3.0}
    rows[1] |= {"val_loss": 3.5, "skipped": 2, "train_loss": None}
    write(tmp_path, "a/pretrain", rows, age=60.0, hook_list=["forward/*/rms"])
    (row,) = runs.table(runs.find(tmp_path), NOW)
    assert (row["step"], row["total_steps"], row["tokens"], row["device"]) == (30, 100, 1920, "cpu")
    assert (row["val_loss"], row["best_val_loss"], row["train_loss"]) == (3.5, 3.0, 5 - 30 / 50)
    assert (row["tok_per_s"], row["seconds"], row["age_seconds"]) == (120.0, 30.0, 60.0)
    assert row["hooks"] == ["forward/*/rms"]


@pytest.mark.parametrize(
    ("told", "steps", "every", "age", "status"),
    [
        ("running", (10, 20), 1.0, 30.0, "running"),
        ("running", (10, 20), 1.0, 600.0, "stopped"),  # killed, and had no time to say so
        ("running", (10, 20), 60.0, 600.0, "running"),  # writes a line every ten minutes
        ("running", (), 1.0, 30.0, "running"),
        ("running", (90, 100), 1.0, 9000.0, "done"),
        ("stopped", (10,), 1.0, 1.0, "stopped"),
        ("failed", (10,), 1.0, 1.0, "failed"),
        ("done", (100,), 1.0, 1.0, "done"),
    ],
)
def test_a_run_lives_or_it_does_not(tmp_path, told, steps, every, age, status):
    run = runs.read(write(tmp_path, "run", lines(*steps, every=every), age, status=told))
    assert runs.status(run, NOW) == status


def test_runs_of_before_are_read_too(tmp_path):
    path = write(tmp_path, "old", lines(10), age=1e6)
    (path / runlog.RUN).write_text(json.dumps({"stage": "sft", "started": "2025"}))
    row = runs.table(runs.find(tmp_path), NOW)[0]
    assert (row["status"], row["total_steps"], row["stage"]) == ("stopped", None, "sft")


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(ValueError, match="no run folder"):
        runs.read(tmp_path)
    (write(tmp_path, "broken") / runlog.RUN).write_text("{")
    with pytest.raises(ValueError, match=r"broken/run\.json"):
        runs.read(tmp_path / "broken")
    assert runs.find(tmp_path / "nowhere") == []


def test_titles_leave_out_what_all_share(tmp_path):
    found = [runs.read(write(tmp_path, name)) for name in ("x/a/sft", "x/b/sft")]
    assert runs.titles(found) == ["a/sft", "b/sft"]
    assert runs.titles(found[:1]) == ["sft"]
