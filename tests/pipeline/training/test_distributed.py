"""pipeline/training/distributed.py: processes train as one, and survive a loss."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torchrun
from safetensors.torch import load_file

from slm_fn.core import device as devices
from slm_fn.pipeline.training.distributed import SINGLE_PROCESS, process_group
from slm_fn.train import checkpoint, run_log

SETTINGS = {
    "batch_size": 5,
    "precision": "float32",
    "engine": "eager",
    "keep": 99,
    "sample_every": 6,
}


def program(project, out, **changes):
    """`slm pretrain` of five rows a step, which two processes cannot share out equally."""
    told = [
        f"--set=pretrain.train.{name}={value}" for name, value in {**SETTINGS, **changes}.items()
    ]
    files = [str(project.config_file), "--data", str(project.pack), "--out", str(out)]
    return [
        "-m",
        "slm_fn.cli.main",
        "pretrain",
        *files,
        "--device",
        "cpu",
        "--json",
        "--no-progress",
        *told,
    ]


def alone(project, out, **changes):
    env = torchrun.environment()
    subprocess.run(
        [sys.executable, *program(project, out, **changes)],
        env=env,
        check=True,
        capture_output=True,
    )


def together(project, out, **changes):
    return torchrun.run(2, *program(project, out, **changes))


def gap(run, other):
    """The largest relative difference of two runs' last checkpoints, leaf by leaf."""
    far = 0.0
    for name in (checkpoint.WEIGHTS, checkpoint.EMA_WEIGHTS, checkpoint.TRAIN_STATE):
        a, b = (load_file(checkpoint.find_newest(out)[0] / name) for out in (run, other))
        assert a.keys() == b.keys()
        far = max(
            far,
            *(
                float((a[k].double() - b[k]).norm() / b[k].double().norm().clamp(min=1e-30))
                for k in a
            ),
        )
    return far


def files_of(run):
    place = checkpoint.find_newest(run)[0]
    return {
        path.name: path.read_bytes() for path in place.iterdir() if path.name != checkpoint.STATE
    }


def back_to(run, out, step):
    """A copy of a run as if it had been killed after a step."""
    shutil.copytree(run, out)
    for place in checkpoint.list_folders(out / "checkpoints"):
        if place > checkpoint.step_folder(out, step):
            shutil.rmtree(place)


@pytest.fixture(scope="module")
def one(project, tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "run"
    alone(project, out)
    return out


@pytest.fixture(scope="module")
def two(project, tmp_path_factory):
    out = tmp_path_factory.mktemp("two") / "run"
    return out, together(project, out)


def test_two_processes_train_as_one_and_the_first_speaks(one, two):
    out, said = two
    assert gap(out, one) < 1e-5
    mine, other = run_log.read_rows(out / run_log.METRICS), run_log.read_rows(one / run_log.METRICS)
    assert [(row["step"], row["tokens"]) for row in mine] == [
        (row["step"], row["tokens"]) for row in other
    ]
    assert [row["val_loss"] for row in mine if "val_loss" in row] == pytest.approx(
        [row["val_loss"] for row in other if "val_loss" in row], rel=1e-5
    )
    assert [row["step"] for row in run_log.read_rows(out / run_log.SAMPLES)] == [6, 12]
    assert said.count("step 12: saved") == 1
    assert checkpoint.verify(checkpoint.find_newest(out)[0]).num_processes == 2


@pytest.mark.slow
def test_two_one_two_processes_go_on_from_each_other(project, one, two, tmp_path):
    first, second, again = (tmp_path / name for name in ("first", "second", "again"))
    back_to(two[0], first, 3)
    alone(project, first)
    back_to(first, second, 6)
    assert "processes was 1, is 2" in together(project, second)
    assert gap(second, one) < 1e-5
    back_to(two[0], again, 6)
    together(project, again)
    assert files_of(again) == files_of(two[0])


@pytest.mark.slow
def test_shards_are_saved_whole(project, one, tmp_path):
    together(project, tmp_path / "run", sharding="shard")
    assert gap(tmp_path / "run", one) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_fine_tuning_by_two_is_that_by_one(project, one, tmp_path, stage):
    data = {"sft": project.chat, "dpo": project.pairs}[stage]
    told = [f"--set={stage}.train.{name}={value}" for name, value in SETTINGS.items()]
    files = [
        str(project.config_file),
        "--init",
        str(one),
        "--data",
        str(data),
        "--val-fraction",
        "0.3",
    ]
    words = [
        "-m",
        "slm_fn.cli.main",
        stage,
        *files,
        "--device",
        "cpu",
        "--json",
        "--no-progress",
        *told,
    ]
    env = torchrun.environment()
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    subprocess.run(
        [sys.executable, *words, "--out", str(whole)], env=env, check=True, capture_output=True
    )
    torchrun.run(2, *words, "--out", str(shared))
    for name in (checkpoint.WEIGHTS, checkpoint.TRAIN_STATE):
        a, b = (load_file(checkpoint.find_newest(out)[0] / name) for out in (whole, shared))
        assert (
            max(
                float((a[k].double() - b[k]).norm() / b[k].double().norm().clamp(min=1e-30))
                for k in a
            )
            < 1e-5
        )


LONG = {"total_steps": 60, "save_every": 7, "keep": 2, "sample_every": 0, "eval_every": 0}


def start(project, out, restarts, **changes):
    """A long run, once it has trained ten steps."""
    words = torchrun.command(2, *program(project, out, **LONG, **changes), restarts=restarts)
    process = subprocess.Popen(
        words, env=torchrun.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while len(run_log.read_rows(out / run_log.METRICS)) < 5 and process.poll() is None:
        time.sleep(0.02)
    return process


def process_of(out, rank):
    """The process with this rank that trains into a folder."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = (
                (place / name).read_bytes().split(b"\0") for name in ("cmdline", "environ")
            )
        except OSError:
            continue
        if str(out).encode() in words and f"RANK={rank}".encode() in environment:
            return int(place.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_job_with_a_clear_message(project, tmp_path, rank):
    process = start(project, tmp_path / "run", restarts=0)
    os.kill(process_of(tmp_path / "run", rank), signal.SIGKILL)
    _, said = process.communicate(timeout=240)
    assert process.returncode != 0
    assert f"process {1 - rank} of 2 lost another one" in said
    assert "the same command resumes from it" in said


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_torchrun_carries_a_killed_run_on_to_the_same_bits(project, tmp_path, sharding):
    together(project, tmp_path / "whole", **LONG, sharding=sharding)
    process = start(project, tmp_path / "killed", restarts=2, sharding=sharding)
    os.kill(process_of(tmp_path / "killed", 1), signal.SIGKILL)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert said.count("resuming from") == 1
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    last = [
        run_log.read_rows(tmp_path / name / run_log.METRICS)[-1] for name in ("killed", "whole")
    ]
    assert last[0]["train_loss"] == last[1]["train_loss"]


@pytest.mark.slow
def test_one_process_asked_to_stop_stops_all_and_saves(project, tmp_path):
    process = start(project, tmp_path / "run", restarts=0)
    os.kill(process_of(tmp_path / "run", 1), signal.SIGTERM)
    _, said = process.communicate(timeout=240)
    assert said.count("slm: stopped at step") == 1
    place = checkpoint.find_newest(tmp_path / "run")[0]
    assert f"stopped at step {checkpoint.verify(place).step} of 60, saved {place}" in said


def test_alone_there_is_nobody_to_ask():
    with process_group("cpu") as dist:
        assert dist == SINGLE_PROCESS
    assert (dist.is_first, dist.any(True), dist.any(False)) == (True, True, False)
    assert dist.sum(2.0, 3.0) == [2.0, 3.0]
    dist.check_same(3, "steps")


def test_a_process_takes_its_own_device_of_a_machine():
    cpu = torch.device("cpu")
    assert devices.assign_device(cpu, 3) == (cpu, "gloo")
    with pytest.raises(ValueError, match="--nproc-per-node"):
        devices.assign_device(torch.device("mps"), 1)
