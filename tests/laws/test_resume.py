"""Exact resume, for every optimizer: a resumed run ends with the bits of one that never stopped.

With all at once that a step may remember or forget: accumulation, averaged parameters, dropout,
several packs mixed.
"""

import shutil

import msgspec
import pytest
from tiny_project import SMALL

from slm_fn import config as configs
from slm_fn.config import Config
from slm_fn.pipeline.stages.pretrain import pretrain
from slm_fn.pipeline.training.stage import RunOptions
from slm_fn.train import checkpoint, run_log
from slm_fn.train.metrics import MACHINE_METRICS

OPTIMIZERS = {
    "adamw": {"name": "adamw", "spike_factor": 9.0},
    "muon": {"name": "muon", "schedule": "wsd", "decay_shape": "sqrt"},
    "lion": {"name": "lion", "learning_rate": 1e-3, "schedule": "linear"},
    "sgd": {
        "name": "sgd",
        "schedule": "onecycle",
        "measures": ["grad_norms", "noise_scale", "update_ratio"],
    },
    "adafactor": {"name": "adafactor", "schedule": "constant"},
    "adafactor-relative": {"name": "adafactor", "relative": 1e-3, "b1": 0.0},
}
TOTAL, STOP = 5, 2


def config_of(optim, **train):
    base = SMALL["pretrain"]["train"] | {
        "total_steps": TOTAL,
        "save_every": STOP,
        "keep": 9,
        "log_every": 1,
    }
    pretraining = {"optim": {"ema_decay": 0.9, "warmup_steps": 2} | optim, "train": base | train}
    raw = {"model": {**SMALL["model"], "dropout": 0.2}, "pretrain": pretraining}
    return configs.convert(raw, "", Config)


def run(config, packs, out):
    return pretrain(config, packs, out, RunOptions("cpu", live=False), weights=[3, 1])


def log_of(root):
    return [
        {k: v for k, v in row.items() if k not in MACHINE_METRICS}
        for row in run_log.read_rows(root / run_log.METRICS)
    ]


def contents(place):
    """Every file of a checkpoint byte for byte; of its state, all but the clock."""
    files = {
        path.name: path.read_bytes() for path in place.iterdir() if path.name != checkpoint.STATE
    }
    return files, msgspec.structs.replace(checkpoint.verify(place), seconds=0.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_is_never_stopped(name, two_packs, tmp_path):
    config = config_of(OPTIMIZERS[name])
    whole, again = tmp_path / "whole", tmp_path / "again"
    done = run(config, two_packs, whole)
    shutil.copytree(whole, again)
    for step in (TOTAL, 2 * STOP):  # as if killed after its first checkpoint was written
        shutil.rmtree(checkpoint.step_folder(again, step))
    gone_on = run(config, two_packs, again)
    assert contents(gone_on.checkpoint) == contents(done.checkpoint)
    assert contents(checkpoint.step_folder(again, 2 * STOP)) == contents(
        checkpoint.step_folder(whole, 2 * STOP)
    )
    assert log_of(again) == log_of(whole)
    assert [row["step"] for row in log_of(whole)] == list(range(1, TOTAL + 1))
    assert gone_on.metrics == done.metrics


def test_the_law_can_be_broken(two_packs, tmp_path):
    # What the comparison rests on: the average is another tree, and a little more dropout ends with
    # other bits.
    config = config_of(OPTIMIZERS["adamw"])
    first = run(config, two_packs, tmp_path / "a").checkpoint
    assert (first / checkpoint.EMA_WEIGHTS).read_bytes() != (
        first / checkpoint.WEIGHTS
    ).read_bytes()
    other = msgspec.structs.replace(
        config, model=msgspec.structs.replace(config.model, dropout=0.21)
    )
    assert contents(run(other, two_packs, tmp_path / "b").checkpoint)[0] != contents(first)[0]
