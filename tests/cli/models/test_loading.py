"""cli/models/loading.py: the options say how the model is loaded."""

from pathlib import Path

import click
from click.testing import CliRunner

from slm_fn.cli.models import loading
from slm_fn.pipeline import model_folder


@click.command()
@loading.load_options
@loading.collect_load_options
def command(loading):
    click.echo(loading)


def test_options_are_collected():
    args = ["--raw", "--quantize", "int8", "--engine", "eager", "--device", "cpu"]
    result = CliRunner().invoke(command, args, catch_exceptions=False)
    expected = loading.LoadOptions(raw=True, quantize="int8", engine="eager", device="cpu")
    assert result.stdout == f"{expected}\n"


def test_options_reach_the_loader(monkeypatch):
    def load(*args, **kwargs):
        return args, kwargs

    monkeypatch.setattr(model_folder, "load", load)
    options = loading.LoadOptions(raw=True, quantize="int4", engine="native", device="cpu")
    args, kwargs = loading.load_model(Path("run"), options)
    assert args == (Path("run"), "cpu", True)
    assert kwargs == {"quantize": "int4", "decode": "native"}
