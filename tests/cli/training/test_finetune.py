"""cli/training/finetune.py: the arguments of `slm sft` and `slm dpo` reach their stage."""

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from slm_fn.cli.training import dpo, finetune, sft
from slm_fn.pipeline.training.loop import TrainResult
from slm_fn.pipeline.training.stage import RunOptions
from slm_fn.train.metrics import Progress

ARGS = ["tiny", "--init", "a", "--data", "b", "--data", "c", "--out", "d", "--device", "cpu"]


@pytest.mark.parametrize("section", ["sft", "dpo"])
def test_arguments_reach_the_stage(section):
    calls = []

    def stage(config, init, data, out, val, run_options, note):
        calls.append((init, data, out, val, run_options))
        assert getattr(config, section).val_fraction == 0.25
        return TrainResult(Path("d/step-1"), Progress(1, 1, 8, 0.5), {})

    @click.command()
    @finetune.finetune_options
    def command(arguments):
        finetune.run_finetune(stage, section, arguments)

    args = [*ARGS, "--val-fraction", "0.25", "--resume", "never", "--no-progress", "--json"]
    result = CliRunner().invoke(command, args, catch_exceptions=False)
    assert json.loads(result.stdout)["checkpoint"] == "d/step-1"
    run_options = RunOptions("cpu", "never", live=False)
    assert calls == [(Path("a"), (Path("b"), Path("c")), Path("d"), (), run_options)]


def test_both_commands_have_the_same_options():
    names = [[option.name for option in module.command.params] for module in (sft, dpo)]
    assert names[0] == names[1]
    assert names[0] == list(finetune.FinetuneOptions._fields)
