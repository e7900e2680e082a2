"""A command group that lists its commands from a table and imports only the one that is called.

Invariant: `--help` of a group imports none of its commands.
"""

from __future__ import annotations

import importlib
from typing import Any

import click


class LazyGroup(click.Group):
    """A group of commands that are imported when they are called.

    Args:
        table: for each command's name, the module below `slm_fn.cli` whose `command` it is, and
            its line in the help.
    """

    def __init__(self, *args: Any, table: dict[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        module_name, _ = self.table[cmd_name]
        module = importlib.import_module(f"slm_fn.cli.{module_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, summary) for name, (_, summary) in self.table.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
