"""`slm quantize` on the command line."""

import json

from click.testing import CliRunner

from slm_fn.cli.models.quantize import command
from slm_fn.pipeline.stages.pretrain import pretrain
from slm_fn.pipeline.training.stage import RunOptions


def test_report_as_json_and_as_a_table(project, tmp_path):
    pretrain(project.config, [project.pack], tmp_path / "run", RunOptions("cpu"))
    args = [
        str(tmp_path / "run"),
        "--bits",
        "8",
        "--out",
        str(tmp_path / "small"),
        "--data",
        str(project.text),
    ]
    figures = json.loads(
        CliRunner().invoke(command, [*args, "--json"], catch_exceptions=False).stdout
    )
    assert figures["bits"] == 8
    assert abs(figures["perplexity_ratio"] - 1) < 0.01
    printed = CliRunner().invoke(command, args, catch_exceptions=False).stdout
    assert "bits per byte" in printed
    assert "of bfloat16's" in printed
    written = tmp_path / "small" / "model.safetensors"
    assert written.stat().st_mode == (tmp_path / "small" / "config.json").stat().st_mode, (
        "the weights are as readable as the config"
    )


def test_missing_texts_are_reported_before_anything_is_written(tmp_path):
    args = [
        str(tmp_path),
        "--bits",
        "8",
        "--out",
        str(tmp_path / "small"),
        "--data",
        str(tmp_path / "nowhere"),
    ]
    assert "nowhere" in str(CliRunner().invoke(command, args).exception)
    assert not (tmp_path / "small").exists()
