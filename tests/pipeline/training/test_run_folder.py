"""pipeline/training/run_folder.py: resumed is never stopped, refusals, the files of a run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import weakref

import msgspec
import pytest
import torch

from slm_fn import config as configs
from slm_fn.pipeline.stages.pretrain import pretrain
from slm_fn.pipeline.training import plan as training_plan
from slm_fn.pipeline.training.run_folder import Interrupted
from slm_fn.pipeline.training.stage import RunOptions
from slm_fn.train import checkpoint, metrics, run_log


def tensors(place):
    return {
        name: (place / name).read_bytes()
        for name in (checkpoint.WEIGHTS, checkpoint.EMA_WEIGHTS, checkpoint.TRAIN_STATE)
    }


def log_of(run):
    return [
        {name: value for name, value in row.items() if name not in metrics.MACHINE_METRICS}
        for row in run_log.read_rows(run / run_log.METRICS)
    ]


@pytest.fixture(scope="module")
def undisturbed(project, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, pretrain(project.config, project.pack, out, RunOptions("cpu", live=False))


def test_a_run_folder_holds_what_the_interface_says(project, undisturbed):
    out, done = undisturbed
    told = json.loads((out / "run.json").read_text())
    assert {
        "run_id",
        "git_commit",
        "config_hash",
        "seed",
        "hook_list",
        "versions",
        "device",
        "command",
    } <= told.keys()
    rows = run_log.read_rows(out / run_log.METRICS)
    assert {"step", "tokens", "train_loss", "lr", "grad_norm", "tok_per_s", "seconds"} <= rows[
        0
    ].keys()
    assert [row["step"] for row in rows if "val_loss" in row] == [6, 12]
    assert rows[-1]["tokens"] == 12 * 4 * 64
    names = {p.name for p in done.checkpoint.iterdir()}
    assert {
        "model.safetensors",
        "model_ema.safetensors",
        "config.json",
        "tokenizer.json",
        "generation.json",
    } <= names
    assert (out / "checkpoints" / "latest").read_text() == "step-00000012"
    assert (out / "checkpoints" / "best").read_text() in {"step-00000006", "step-00000012"}


def test_stopped_and_resumed_is_never_stopped(project, undisturbed, tmp_path):
    whole, done = undisturbed
    root = tmp_path / "run"
    with pytest.raises(Interrupted, match="step 5"):
        stop_after(project, root, 5)
    assert (root / "checkpoints" / "latest").read_text() == "step-00000005"
    again = pretrain(project.config, project.pack, root, RunOptions("cpu", live=False))
    assert tensors(again.checkpoint) == tensors(done.checkpoint)
    # A line is the mean over two steps, and step 5 is the first of such two.
    assert log_of(root) == log_of(whole)


def stop_after(project, root, step):
    """A SIGTERM to this very process once a step has begun."""
    counted = {"n": 0}
    add = metrics.MetricsAccumulator.add

    def counting(self, step_metrics):
        counted["n"] += 1
        if counted["n"] == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return add(self, step_metrics)

    metrics.MetricsAccumulator.add = counting
    try:
        pretrain(project.config, project.pack, root, RunOptions("cpu", live=False))
    finally:
        metrics.MetricsAccumulator.add = add


def test_a_finished_run_started_again_changes_nothing(project, undisturbed):
    out, done = undisturbed
    before = tensors(done.checkpoint)
    again = pretrain(project.config, project.pack, out, RunOptions("cpu", live=False))
    assert again.checkpoint == done.checkpoint
    assert tensors(again.checkpoint) == before


def test_never_refuses_a_folder_that_holds_a_run(project, undisturbed):
    with pytest.raises(ValueError, match="holds a run already"):
        pretrain(
            project.config, project.pack, undisturbed[0], RunOptions("cpu", "never", live=False)
        )


def test_another_config_or_other_data_is_refused(project, undisturbed, tmp_path):
    other = msgspec.structs.replace(
        project.config, dpo=msgspec.structs.replace(project.config.dpo, beta=0.3)
    )
    with pytest.raises(ValueError, match="another config"):
        pretrain(other, project.pack, undisturbed[0], RunOptions("cpu", live=False))
    place = checkpoint.find_newest(undisturbed[0])[0]
    info = checkpoint.verify(place)
    (place / checkpoint.STATE).write_bytes(
        msgspec.json.encode(msgspec.structs.replace(info, data_hash="x"))
    )
    try:
        with pytest.raises(ValueError, match="other data"):
            pretrain(project.config, project.pack, undisturbed[0], RunOptions("cpu", live=False))
    finally:
        (place / checkpoint.STATE).write_bytes(msgspec.json.encode(info))


def test_threads_are_recorded_and_restored(project, undisturbed, tmp_path, capfd):
    place = checkpoint.find_newest(undisturbed[0])[0]
    assert checkpoint.verify(place).num_threads == torch.get_num_threads() == 1
    torch.set_num_threads(2)
    try:
        pretrain(project.config, project.pack, undisturbed[0], RunOptions("cpu", live=False))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)


def test_a_wrong_vocabulary_is_an_error(project, tmp_path):
    wrong = msgspec.structs.replace(
        project.config, model=msgspec.structs.replace(project.config.model, vocab_size=999)
    )
    with pytest.raises(ValueError, match="999"):
        pretrain(wrong, project.pack, tmp_path / "run", RunOptions("cpu", live=False))


@pytest.mark.parametrize("times", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_with_the_same_bits(project, tmp_path, times):
    """kill -9, checkpoint writes included; the same command goes on each time."""
    steps = [
        "--set",
        f"pretrain.train.total_steps={40 * times}",
        "--set",
        "pretrain.train.save_every=2",
        "--set",
        "pretrain.train.keep=2",
    ]

    def command(out):
        return [
            sys.executable, "-m", "slm_fn.cli.main", "pretrain", str(project.config_file),
            "--data", str(project.pack), "--out", str(out), "--device", "cpu",
            "--resume", "auto", "--no-progress", *steps,
        ]  # fmt: skip

    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        command(tmp_path / "whole"), env=env, check=True, capture_output=True, timeout=300
    )
    chance, killed = random.Random(0), 0
    run = tmp_path / "killed"
    while killed < times:
        process = subprocess.Popen(
            command(run), env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        before = len(run_log.read_rows(run / run_log.METRICS))
        while len(run_log.read_rows(run / run_log.METRICS)) <= before and process.poll() is None:
            time.sleep(0.01)  # it is training again
        time.sleep(chance.random() * 0.25)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
    subprocess.run(command(run), env=env, check=True, capture_output=True, timeout=300)
    assert killed == times, "the run ended before it was killed as often: make it longer"
    last = [checkpoint.find_newest(tmp_path / name)[0] for name in ("whole", "killed")]
    assert tensors(last[0]) == tensors(last[1])
    assert log_of(tmp_path / "whole")[-1] == log_of(run)[-1]


def with_hooks(config):
    hooked = configs.override(
        msgspec.to_builtins(config),
        [
            "pretrain.train.hooks.forward=[rms, zeros]",
            "pretrain.train.hooks.taps=['*/ffn', final]",
            "pretrain.optim.measures=[grad_norms]",
            "pretrain.train.tensorboard=true",
        ],
    )
    return configs.convert(hooked, "here", configs.Config)


def test_a_run_with_hooks_is_the_run_without_and_says_more(project, undisturbed, tmp_path):
    plain, done = undisturbed
    config, out = with_hooks(project.config), tmp_path / "run"
    with pytest.raises(Interrupted, match="step 5"):
        stop_after(project._replace(config=config), out, 5)
    assert json.loads((out / "run.json").read_text())["status"] == "stopped"
    again = pretrain(config, project.pack, out, RunOptions("cpu", live=False))
    assert (
        tensors(again.checkpoint)[checkpoint.WEIGHTS]
        == tensors(done.checkpoint)[checkpoint.WEIGHTS]
    )
    assert (
        tensors(again.checkpoint)[checkpoint.EMA_WEIGHTS]
        == tensors(done.checkpoint)[checkpoint.EMA_WEIGHTS]
    )
    told = json.loads((out / "run.json").read_text())
    hooked = [f"forward/{tap}/{stat}" for tap in ("*/ffn", "final") for stat in ("rms", "zeros")]
    assert told["hook_list"] == [*hooked, "update/grad_norms"]
    assert (told["status"], told["total_steps"]) == ("done", 12)
    rows, before = log_of(out), log_of(plain)
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    acts = {
        f"acts/{tap}/{stat}" for tap in ("0/ffn", "1/ffn", "final") for stat in ("rms", "zeros")
    }
    for row, other in zip(rows, before, strict=True):
        assert acts < row.keys()
        assert row["acts/final/rms"] > 0
        assert row["grad_norm/blocks/attn/q"] >= 0
        assert {name: row[name] for name in other} == other
    whole = pretrain(config, project.pack, tmp_path / "whole", RunOptions("cpu", live=False))
    assert log_of(whole.checkpoint.parents[1]) == rows
    assert list((out / "tensorboard").iterdir())


def test_one_process_alone_does_not_shard(project, tmp_path):
    config = configs.load(project.config_file, ["pretrain.train.sharding=shard"])
    with pytest.raises(
        ValueError, match=r"pretrain.train.sharding shard is for several processes.*torchrun"
    ):
        pretrain(config, project.pack, tmp_path / "run", RunOptions("cpu", live=False))
    assert not (tmp_path / "run").exists()


def test_the_first_state_does_not_stay_in_memory(project, tmp_path, monkeypatch):
    begun, alive = [], []
    first, append = training_plan.init_state, run_log.append

    def watched(params, tx):
        begun.append(weakref.ref(params["norm"]))
        return first(params, tx)

    def told(path, row):
        alive.append(begun[0]() is not None)
        append(path, row)

    monkeypatch.setattr(training_plan, "init_state", watched)
    monkeypatch.setattr(run_log, "append", told)
    pretrain(project.config, project.pack, tmp_path / "run", RunOptions("cpu", live=False))
    assert alive
    assert not any(alive)
