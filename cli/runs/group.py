"""`slm runs`: a table of the runs in a folder, and `slm runs plot`: their curves.

Invariant: `slm runs FOLDER` is the table; an argument that names no command is a folder.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from slm_fn.cli import options, output
from slm_fn.cli.lazy import LazyGroup

COMMANDS = {
    "plot": ("runs.plot", "Plot loss and other curves of one or more runs."),
    "table": ("runs.group", "The table, for a folder named `plot`."),
}
SORT_KEYS = ("age", "best", "loss", "tokens", "run")
COLUMNS = [
    "run",
    "stage",
    "status",
    "steps",
    "tokens",
    "loss",
    "best val",
    "tok/s",
    "device",
    "age",
]
OPTIONAL_COLUMNS = ["device", "tokens", "stage", "age", "tok/s"]


class TableFirst(LazyGroup):
    """A group whose default command is `table`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        if first in COMMANDS or first in ctx.help_option_names:
            return super().parse_args(ctx, args)
        return super().parse_args(ctx, ["table", *args])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return table if cmd_name == "table" else super().get_command(ctx, cmd_name)


@click.group("runs", cls=TableFirst, table=COMMANDS)
def command() -> None:
    """List and plot training runs.

    \b
    Example:
        slm runs demo
        slm runs demo --sort best --json
        slm runs plot demo/pretrain demo/sft --out curves.html
    """


@click.command("table")
@click.argument("folder", default=".", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--sort",
    default="age",
    show_default=True,
    type=click.Choice(SORT_KEYS),
    help="Sort key; the best or newest run is the first row.",
)
@options.as_json
def table(folder: Path, sort: str, as_json: bool) -> None:
    """List the training runs under FOLDER, the best or newest first.

    \b
    Example:
        slm runs demo --sort best
    """
    from slm_fn.pipeline.reports import runs

    rows = runs.summarize(runs.find(folder))
    if not rows:
        raise ValueError(
            f"{folder}: contains no run folders (slm pretrain, sft and dpo write them)"
        )
    rows = sorted(rows, key=partial(_sort_value, sort=sort))
    if as_json:
        output.print_json(rows)
        return
    cells = [_cells(row, folder) for row in rows]
    output.print_table(str(folder), COLUMNS, cells, OPTIONAL_COLUMNS)


def _sort_value(row: dict[str, Any], sort: str) -> Any:
    """Returns the value to sort a run by; runs without the figure are the last ones."""
    match sort:
        case "age":
            return row["age_seconds"]
        case "run":
            return row["run"]
        case "tokens":
            return -row["tokens"]
        case "best":
            loss = row["best_val_loss"]
        case _:
            loss = row["train_loss"]
    return float("inf") if loss is None else loss


def _cells(row: dict[str, Any], folder: Path) -> list[str]:
    path = Path(row["run"])
    name = str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
    status = row["status"]
    if row["skipped"]:
        status += f", {row['skipped']} skipped"
    steps = f"{row['step']:,}"
    if row["total_steps"]:
        steps += f" / {row['total_steps']:,}"
    return [
        name,
        row["stage"] or "",
        status,
        steps,
        _format_count(row["tokens"]),
        _format(row["train_loss"], ".4f"),
        _format(row["best_val_loss"], ".4f"),
        _format(row["tok_per_s"], ",.0f"),
        row["device"] or "",
        _format_age(row["age_seconds"]),
    ]


def _format(value: float | None, spec: str) -> str:
    return "" if value is None else format(value, spec)


def _format_count(number: float) -> str:
    """Returns a large number in three digits.

    Example:
        >>> _format_count(950), _format_count(1_836_000), _format_count(2_500_000_000)
        ('950', '1.84M', '2.5B')
    """
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:,.0f}"


def _format_age(seconds: float) -> str:
    """Returns an age in its largest unit.

    Example:
        >>> _format_age(5), _format_age(200), _format_age(7300), _format_age(300_000)
        ('5 s', '3 min', '2 h', '3 d')
    """
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"
