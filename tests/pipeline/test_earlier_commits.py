"""Folders that an earlier commit left, half-done or finished, go on or are read as they were there.

This runs the command line and imports no other module of the package: module names may change,
files on disks do not. tests/fixtures/README.md says how each folder was made.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

from slm_fn.cli.main import cli

FIXTURES = Path(__file__).parents[1] / "fixtures" / "e68c5b3"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))
RELATIVE, ABSOLUTE = 2e-3, 1e-5
"""How far figures may be off on another processor; on the same one, with one thread, bits agree."""
LONG_AGO = 1_500_000_000
MACHINE_FIELDS = {"tok_per_s", "data_wait", "peak_memory_mib", "seconds"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory of the commands, with their inputs in it."""
    shutil.copytree(FIXTURES / "inputs", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def slm(argv):
    """Run a command in this process; returns its standard output."""
    result = CliRunner().invoke(cli, argv, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def json_lines(path):
    """The objects of a JSONL file; none where there is no file."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def checksums(root):
    """The SHA-256 of every file below a folder, but for the lock."""
    return {
        file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in root.rglob("*")
        if file.is_file() and file.name != ".lock"
    }


def close(expected):
    """The same figure up to rounding; counts and missing values exactly."""
    if not isinstance(expected, float):
        return expected
    return pytest.approx(expected, rel=RELATIVE, abs=ABSOLUTE)


@pytest.mark.parametrize("name", EXPECTED["runs"])
def test_a_stopped_run_goes_on_to_its_end(folder, name):
    expected, run = EXPECTED["runs"][name], folder / "run"
    shutil.copytree(FIXTURES / "runs" / name, folder, dirs_exist_ok=True)
    stopped_at, total_steps = expected["stopped_at"], expected["total_steps"]
    described = json.loads((run / "run.json").read_bytes())
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= stopped_at]

    slm(expected["argv"])

    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    assert lines[: len(kept)] == kept, "lines from before the stop, their clock readings included"
    added = [json.loads(line) for line in lines[len(kept) :]]
    assert [row["step"] for row in added] == [row["step"] for row in expected["metrics"]]
    for row, want in zip(added, expected["metrics"], strict=True):
        figures = {key: value for key, value in row.items() if key not in MACHINE_FIELDS}
        assert figures == {key: close(value) for key, value in want.items()}
    assert [row["step"] for row in json_lines(run / "samples.jsonl")] == expected["samples_at"]

    now = json.loads((run / "run.json").read_bytes())
    for key in ("run_id", "started", "git_commit", "config_hash", "data_hash", "hook_list"):
        assert now[key] == described[key], key
    assert now["status"] == "done"
    assert (run / "checkpoints" / "latest").read_text() == f"step-{total_steps:08d}"
    last = run / "checkpoints" / f"step-{total_steps:08d}"
    weights = expected["shapes_and_norms"]
    assert {file.name for file in last.glob("model*.safetensors")} == set(weights)
    for file, expected_tensors in weights.items():
        tensors = load_file(last / file)
        assert set(tensors) == set(expected_tensors)
        for path, (shape, norm) in expected_tensors.items():
            assert list(tensors[path].shape) == shape, path
            assert tensors[path].double().norm().item() == close(norm), path


def age(root, names):
    """Date files back, so that one which is written again shows."""
    for name in names:
        os.utime(root / name, (LONG_AGO, LONG_AGO))


def rewritten(root, names):
    """Those of the files that were written after `age`."""
    return [name for name in names if (root / name).stat().st_mtime != LONG_AGO]


def test_a_killed_pack_goes_on_to_the_same_bytes(folder):
    expected = EXPECTED["pack"]
    shutil.copytree(FIXTURES / "pack", folder, dirs_exist_ok=True)
    os.utime(folder / expected["input"], (expected["changed_at"], expected["changed_at"]))
    age(folder / ".packed.unfinished" / "new", expected["finished_before"])
    slm(expected["argv"])
    assert checksums(folder / "packed") == expected["sha256"]
    assert expected["finished_before"]
    assert rewritten(folder / "packed", expected["finished_before"]) == []
    assert not (folder / ".packed.unfinished").exists()


def test_a_killed_preparation_goes_on_to_the_same_bytes(folder):
    expected = EXPECTED["prepare"]
    shutil.copytree(FIXTURES / "prepare", folder, dirs_exist_ok=True)
    age(folder / "out", expected["finished_before"])
    slm(expected["argv"])
    found = checksums(folder / "out")
    for file in folder.glob("out/*/metadata.json"):
        metadata = json.loads(file.read_bytes())
        del metadata["versions"]  # of Python's Unicode tables, for one
        found[file.relative_to(folder / "out").as_posix()] = metadata
    assert found == expected["files"]
    assert expected["finished_before"]
    assert rewritten(folder / "out", expected["finished_before"]) == []


@pytest.mark.parametrize("expected", EXPECTED["models"], ids=lambda case: case["name"])
def test_a_finished_model_has_the_loss_it_had(folder, expected):
    figures = json.loads(slm(expected["argv"]))
    assert figures == {key: close(value) for key, value in expected["figures"].items()}
