"""cli/lazy.py.

A table is listed without imports, and each of its rows is a command of that name.
"""

import sys

import click
import pytest
from click.testing import CliRunner

from slm_fn.cli import main
from slm_fn.cli.data import group as data
from slm_fn.cli.lazy import LazyGroup


def test_help_lists_the_table_and_imports_none_of_it():
    group = LazyGroup(
        "slm",
        table={"now": ("no_such_file", "Does it."), "later": ("no_other_file", "Will do it.")},
    )
    printed = CliRunner().invoke(group, ["--help"], catch_exceptions=False).output
    assert "now    Does it." in printed
    assert "later  Will do it." in printed


def test_a_command_is_imported_when_it_is_called():
    group = LazyGroup("slm", table={"device": ("system.device", "What this machine has.")})
    sys.modules.pop("slm_fn.cli.system.device", None)
    assert (
        '"auto"' in CliRunner().invoke(group, ["device", "--json"], catch_exceptions=False).output
    )
    assert "slm_fn.cli.system.device" in sys.modules
    assert CliRunner().invoke(group, ["devise"]).exit_code == 2


@pytest.mark.parametrize("table", [main.COMMANDS, data.COMMANDS], ids=["slm", "slm data"])
def test_every_row_names_a_command(table):
    group = LazyGroup("x", table=table)
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert table[name][1].endswith(".")
