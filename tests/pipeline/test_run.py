"""pipeline/run.py, pretrain.py: resume = never stopped, refusals, and what a run folder holds."""

import inspect
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
from slm_fn.pipeline import run, step
from slm_fn.pipeline.pretrain import pretrain
from slm_fn.pipeline.run import Interrupted
from slm_fn.train import checkpoint, meter, runlog


def tensors(place):
    return {
        name: (place / name).read_bytes() for name in (checkpoint.WEIGHTS, checkpoint.AVERAGED, checkpoint.TRAIN_STATE)
    }


def diary(run):
    return [
        {name: value for name, value in row.items() if name not in meter.OF_THE_MACHINE}
        for row in runlog.read(run / runlog.METRICS)
    ]


@pytest.fixture(scope="module")
def undisturbed(road, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, pretrain(road.config, road.pack, out, "cpu", live=False)


def test_a_run_folder_holds_what_the_interface_says(road, undisturbed):
    out, done = undisturbed
    told = json.loads((out / "run.json").read_text())
    assert {"run_id", "git_commit", "config_hash", "seed", "hook_list", "versions", "device", "command"} <= told.keys()
    rows = runlog.read(out / runlog.METRICS)
    assert {"step", "tokens", "train_loss", "lr", "grad_norm", "tok_per_s", "seconds"} <= rows[0].keys()
    assert [row["step"] for row in rows if "val_loss" in row] == [6, 12]
    assert rows[-1]["tokens"] == 12 * 4 * 64
    names = {p.name for p in done.checkpoint.iterdir()}
    assert {"model.safetensors", "model_ema.safetensors", "config.json", "tokenizer.json", "generation.json"} <= names
    assert (out / "checkpoints" / "latest").read_text() == "step-00000012"
    assert (out / "checkpoints" / "best").read_text() in {"step-00000006", "step-00000012"}


def test_stopped_and_resumed_is_never_stopped(road, undisturbed, tmp_path):
    whole, done = undisturbed
    root = tmp_path / "run"
    with pytest.raises(Interrupted, match="step 5"):
        stop_after(road, root, 5)
    assert (root / "checkpoints" / "latest").read_text() == "step-00000005"
    again = pretrain(road.config, road.pack, root, "cpu", live=False)
    assert tensors(again.checkpoint) == tensors(done.checkpoint)
    # A line is the mean over two steps, and step 5 is the first of such two.
    assert diary(root) == diary(whole)


def stop_after(road, root, step):
    """A SIGTERM to this very process once a step has begun."""
    counted = {"n": 0}
    advance = meter.Meter.advance

    def counting(self, metrics):
        counted["n"] += 1
        if counted["n"] == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(self, metrics)

    meter.Meter.advance = counting
    try:
        pretrain(road.config, road.pack, root, "cpu", live=False)
    finally:
        meter.Meter.advance = advance


def test_a_finished_run_started_again_changes_nothing(road, undisturbed):
    out, done = undisturbed
    before = tensors(done.checkpoint)
    again = pretrain(road.config, road.pack, out, "cpu", live=False)
    assert again.checkpoint == done.checkpoint
    assert tensors(again.checkpoint) == before


def test_never_refuses_a_folder_that_holds_a_run(road, undisturbed):
    with pytest.raises(ValueError, match="holds a run already"):
        pretrain(road.config, road.pack, undisturbed[0], "cpu", resume="never", live=False)


def test_another_config_or_other_data_is_refused(road, undisturbed, tmp_path):
    other = msgspec.structs.replace(road.config, dpo=msgspec.structs.replace(road.config.dpo, beta=0.3))
    with pytest.raises(ValueError, match="another config"):
        pretrain(other, road.pack, undisturbed[0], "cpu", live=False)
    place = checkpoint.newest(undisturbed[0])[0]
    info = checkpoint.check(place)
    (place / checkpoint.STATE).write_bytes(msgspec.json.encode(msgspec.structs.replace(info, data_hash="x")))
    try:
        with pytest.raises(ValueError, match="other data"):
            pretrain(road.config, road.pack, undisturbed[0], "cpu", live=False)
    finally:
        (place / checkpoint.STATE).write_bytes(msgspec.json.encode(info))


def test_threads_are_recorded_and_restored(road, undisturbed, tmp_path, capfd):
    place = checkpoint.newest(undisturbed[0])[0]
    assert checkpoint.check(place).num_threads == torch.get_num_threads() == 1
    torch.set_num_threads(2)
    try:
        pretrain(road.config, road.pack, undisturbed[0], "cpu", live=False)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)


def test_a_wrong_vocabulary_is_an_error(road, tmp_path):
    wrong = msgspec.structs.replace(road.config, model=msgspec.structs.replace(road.config.model, vocab_size=999))
    with pytest.raises(ValueError, match="999"):
        pretrain(wrong, road.pack, tmp_path / "run", "cpu", live=False)


@pytest.mark.parametrize("times", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_with_the_same_bits(road, tmp_path, times):
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
            sys.executable, "-m", "slm_fn.cli.main", "pretrain", str(road.config_file), "--data", str(road.pack),
            "--out", str(out), "--device", "cpu", "--resume", "auto", "--no-progress", *steps,
        ]  # fmt: skip

    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(tmp_path / "whole"), env=env, check=True, capture_output=True, timeout=300)
    chance, killed = random.Random(0), 0
    run = tmp_path / "killed"
    while killed < times:
        process = subprocess.Popen(command(run), env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        before = len(runlog.read(run / runlog.METRICS))
        while len(runlog.read(run / runlog.METRICS)) <= before and process.poll() is None:
            time.sleep(0.01)  # it is training again
        time.sleep(chance.random() * 0.25)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
    subprocess.run(command(run), env=env, check=True, capture_output=True, timeout=300)
    assert killed == times, "the run ended before it was killed as often: make it longer"
    last = [checkpoint.newest(tmp_path / name)[0] for name in ("whole", "killed")]
    assert tensors(last[0]) == tensors(last[1])
    assert diary(tmp_path / "whole")[-1] == diary(run)[-1]


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


def test_a_run_with_hooks_is_the_run_without_and_says_more(road, undisturbed, tmp_path):
    plain, done = undisturbed
    config, out = with_hooks(road.config), tmp_path / "run"
    with pytest.raises(Interrupted, match="step 5"):
        stop_after(road._replace(config=config), out, 5)
    assert json.loads((out / "run.json").read_text())["status"] == "stopped"
    again = pretrain(config, road.pack, out, "cpu", live=False)
    assert tensors(again.checkpoint)[checkpoint.WEIGHTS] == tensors(done.checkpoint)[checkpoint.WEIGHTS]
    assert tensors(again.checkpoint)[checkpoint.AVERAGED] == tensors(done.checkpoint)[checkpoint.AVERAGED]
    told = json.loads((out / "run.json").read_text())
    hooked = [f"forward/{tap}/{stat}" for tap in ("*/ffn", "final") for stat in ("rms", "zeros")]
    assert told["hook_list"] == [*hooked, "update/grad_norms"]
    assert (told["status"], told["total_steps"]) == ("done", 12)
    rows, before = diary(out), diary(plain)
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    acts = {f"acts/{tap}/{stat}" for tap in ("0/ffn", "1/ffn", "final") for stat in ("rms", "zeros")}
    for row, other in zip(rows, before, strict=True):
        assert acts < row.keys()
        assert row["acts/final/rms"] > 0
        assert row["grad_norm/blocks/attn/q"] >= 0
        assert {name: row[name] for name in other} == other
    whole = pretrain(config, road.pack, tmp_path / "whole", "cpu", live=False)
    assert diary(whole.checkpoint.parents[1]) == rows
    assert list((out / "tensorboard").iterdir())


def test_one_process_alone_does_not_shard(road, tmp_path):
    config = configs.load(road.config_file, ["pretrain.train.sharding=shard"])
    with pytest.raises(ValueError, match=r"pretrain.train.sharding shard is for several processes.*torchrun"):
        pretrain(config, road.pack, tmp_path / "run", "cpu", live=False)
    assert not (tmp_path / "run").exists()


def test_the_first_state_does_not_stay_in_memory(road, tmp_path, monkeypatch):
    begun, alive = [], []
    first, append = step.init_state, runlog.append

    def watched(params, tx):
        begun.append(weakref.ref(params["norm"]))
        return first(params, tx)

    def told(path, row):
        alive.append(begun[0]() is not None)
        append(path, row)

    monkeypatch.setattr(run, "fit", inspect.unwrap(run.fit))  # what checks shapes in tests keeps the arguments
    monkeypatch.setattr(step, "init_state", watched)
    monkeypatch.setattr(runlog, "append", told)
    pretrain(road.config, road.pack, tmp_path / "run", "cpu", live=False)
    assert alive
    assert not any(alive)
