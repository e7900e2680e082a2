"""`slm runs plot` as a process: a file in the format of its suffix, or one line with the error."""

import json
import os
import subprocess
import sys

import pytest

from slm_fn.train import run_log


def plot(*args, cwd):
    command = [sys.executable, "-m", "slm_fn.cli.main", "runs", "plot", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ}, timeout=120
    )


@pytest.fixture
def folder(tmp_path):
    """Two finished runs, and one without a log line."""
    for name in ("short", "long", "fresh"):
        path = tmp_path / ("later" if name == "fresh" else "runs") / name
        path.mkdir(parents=True)
        info = {
            "stage": "pretrain",
            "started": "2026",
            "total_steps": 40,
            "status": "done",
            "device": "cpu",
        }
        (path / run_log.RUN_INFO).write_text(json.dumps(info))
        for step in range(
            0 if name == "fresh" else 10, {"short": 21, "long": 41, "fresh": 0}[name], 10
        ):
            row = {
                "step": step,
                "tokens": 64 * step,
                "flops": 6400 * step,
                "train_loss": 4.0 - step / 20,
            }
            extra = {"lr": 0.1, "acts/0/ffn/rms": 1.0, "acts/final/rms": 1.5, "seconds": step / 10}
            run_log.append(path / run_log.METRICS, row | extra)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "start"), [("c.html", b"<!doctype html>"), ("c.svg", b"<?xml"), ("c.PNG", b"\x89PNG")]
)
def test_the_suffix_chooses_the_format(folder, name, start):
    done = plot("runs", "--out", name, "--keys", "lr,acts/", "--log-y", "--smooth", "2", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{name}\n", "")
    drawn = (folder / name).read_bytes()
    assert drawn.startswith(start)
    if name == "c.html":  # the loss by steps, tokens, seconds and FLOPs; lr; two activations
        assert drawn.count(b"<figure>") == 4 + 1 + 2
        assert b"short" in drawn
        assert b"fresh" not in drawn


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["runs", "--out", "c.pdf"], ["c.pdf", ".html, .png or .svg"]),
        (["runs"], ["--out"]),
        (["--out", "c.html"], ["FOLDERS"]),
        (["nowhere", "--out", "c.html"], ["nowhere", "does not exist"]),
        (["runs", "--out", "c.html", "--x", "epochs"], ["epochs", "steps", "flops"]),
        (["runs", "--out", "c.html", "--keys", "los"], ["'los'", "train_loss"]),
        (["later", "--out", "c.html"], ["fresh", "no lines"]),
        (["runs", "--out", "runs/short/run.json/c.html"], ["run.json"]),
    ],
)
def test_an_error_is_one_line_and_writes_nothing(folder, args, words):
    done = plot(*args, cwd=folder)
    assert done.returncode == 2
    assert done.stdout == ""
    *usage, line = done.stderr.strip().splitlines()
    assert all(word in line for word in words), done.stderr
    assert all(start.startswith(("Usage:", "Try", "")) for start in usage)
    assert "Traceback" not in done.stderr
    assert not list(folder.glob("c.*"))


def test_help_has_examples_and_needs_no_torch(folder):
    code = (
        "import sys; sys.argv = ['slm', 'runs', 'plot', 'runs', '--out', 'c.html']\n"
        "from slm_fn.cli.main import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "slm runs plot demo --out curves.html" in plot("--help", cwd=folder).stdout
