"""cli/options.py: options combine in the order of the help, and several become one object."""

from typing import NamedTuple

import click
from click.testing import CliRunner

from slm_fn.cli import options


class Device(NamedTuple):
    device: str
    raw: bool


@click.command()
@options.apply_all(options.raw, options.device)
@options.as_json
@options.collect("chosen", Device)
def command(chosen, as_json):
    click.echo(f"{chosen} {as_json}")


def test_help_lists_the_options_in_the_order_of_the_decorators():
    text = CliRunner().invoke(command, ["--help"], catch_exceptions=False).output
    assert text.index("--raw") < text.index("--device") < text.index("--json")


def test_collected_options_are_one_object():
    result = CliRunner().invoke(command, ["--raw", "--device", "cpu"], catch_exceptions=False)
    assert result.output == "Device(device='cpu', raw=True) False\n"


def test_paths_may_be_repeated():
    @click.command()
    @options.paths("--data", "Text file.", "data")
    def show(data):
        click.echo([path.name for path in data])

    result = CliRunner().invoke(show, ["--data", "a", "--data", "b"], catch_exceptions=False)
    assert result.output == "['a', 'b']\n"
    assert "Text file. May be repeated." in CliRunner().invoke(show, ["--help"]).output
