"""examples/: every script runs, is short, and learns."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
SAYS = {"engine_by_hand": "'the ' goes on 'food of love'\n"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_it_runs_and_is_short(script):
    assert len(script.read_text().splitlines()) <= 80
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    losses = [
        float(word)
        for line in done.stdout.splitlines()
        if line.startswith("step")
        for word in line.split()[3:4]
    ]
    assert losses[-1] < losses[0] / 5
    assert SAYS.get(script.stem, "") in done.stdout


def test_composing_a_step_takes_less_than_40_lines():
    script = next(path for path in SCRIPTS if path.stem == "compose_a_step")
    assert len(script.read_text().splitlines()) < 40
