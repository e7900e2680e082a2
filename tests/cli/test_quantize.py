"""`slm quantize` on the command line."""

import json

from click.testing import CliRunner

from slm_fn.cli.quantize import command
from slm_fn.pipeline.pretrain import pretrain


def test_report_as_json_and_as_a_table(road, tmp_path):
    pretrain(road.config, [road.pack], tmp_path / "run", "cpu")
    args = [str(tmp_path / "run"), "--bits", "8", "--out", str(tmp_path / "small"), "--data", str(road.text)]
    found = json.loads(CliRunner().invoke(command, [*args, "--json"], catch_exceptions=False).stdout)
    assert found["bits"] == 8
    assert abs(found["perplexity_ratio"] - 1) < 0.01
    shown = CliRunner().invoke(command, args, catch_exceptions=False).stdout
    assert "bits per byte" in shown
    assert "of bfloat16's" in shown
    written = tmp_path / "small" / "model.safetensors"
    assert written.stat().st_mode == (tmp_path / "small" / "config.json").stat().st_mode, "readable as its neighbours"


def test_texts_that_are_not_there_are_told_before_anything_is_written(tmp_path):
    args = [str(tmp_path), "--bits", "8", "--out", str(tmp_path / "small"), "--data", str(tmp_path / "nowhere")]
    assert "nowhere" in str(CliRunner().invoke(command, args).exception)
    assert not (tmp_path / "small").exists()
