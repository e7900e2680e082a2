"""`slm runs`: a table of the runs in a folder, and `slm runs plot`: their curves.

Invariant: `slm runs FOLDER` is the table; what is no command is taken for a folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from slm_fn.cli import options
from slm_fn.cli.lazy import LazyGroup

COMMANDS = {
    "plot": ("plot_runs", "Draw loss and other curves of one run or several."),
    "table": ("runs", "The table, if a folder is called `plot`."),
}
SORTED = ("age", "best", "loss", "tokens", "run")


class TableFirst(LazyGroup):
    """A group whose first command needs no name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        asks = any(arg in ctx.help_option_names for arg in args[:1])
        return super().parse_args(ctx, args if asks or args[:1] in (["plot"], ["table"]) else ["table", *args])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return table if cmd_name == "table" else super().get_command(ctx, cmd_name)


@click.group("runs", cls=TableFirst, table=COMMANDS)
def command() -> None:
    """A table of training runs, and pictures of them.

    \b
    Example:
        slm runs demo
        slm runs demo --sort best --json
        slm runs plot demo/pretrain demo/sft --out curves.html
    """


@click.command("table")
@click.argument("folder", default=".", type=click.Path(path_type=Path, exists=True))
@click.option("--sort", default="age", show_default=True, type=click.Choice(SORTED), help="What stands on top.")
@options.as_json
def table(folder: Path, sort: str, as_json: bool) -> None:
    """A table of the training runs under FOLDER; what is best or newest stands on top.

    \b
    Example:
        slm runs demo --sort best
    """
    from slm_fn.pipeline import runs

    rows = runs.table(runs.find(folder))
    if not rows:
        raise ValueError(f"{folder}: no run folders here (slm pretrain, sft and dpo make them)")
    rows = sorted(rows, key=lambda row: _place(row, sort))
    if as_json:
        options.print_json(rows)
        return
    columns = ["run", "stage", "status", "steps", "tokens", "loss", "best val", "tok/s", "device", "age"]
    cells = [_cells(row, folder) for row in rows]
    options.print_table(str(folder), columns, cells, spare=["device", "tokens", "stage", "age", "tok/s"])


def _place(row: dict[str, Any], sort: str) -> Any:
    """Where a row stands; runs that lack the figure stand at the end."""
    match sort:
        case "age" | "run":
            return row["age_seconds"] if sort == "age" else row["run"]
        case "tokens":
            return -row["tokens"]
    value = row["best_val_loss" if sort == "best" else "train_loss"]
    return float("inf") if value is None else value


def _cells(row: dict[str, Any], folder: Path) -> list[str]:
    path = Path(row["run"])
    inside = str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
    total = row["total_steps"]
    steps = f"{row['step']:,}" + (f" / {total:,}" if total else "")
    losses = ("" if row[key] is None else f"{row[key]:.4f}" for key in ("train_loss", "best_val_loss"))
    rate = "" if row["tok_per_s"] is None else f"{row['tok_per_s']:,.0f}"
    status = row["status"] + (f", {row['skipped']} skipped" if row["skipped"] else "")
    told = [inside, row["stage"] or "", status, steps, _short(row["tokens"]), *losses]
    return [*told, rate, row["device"] or "", _ago(row["age_seconds"])]


def _short(number: float) -> str:
    """A large number in three digits.

    Example:
        >>> _short(950), _short(1_836_000), _short(2_500_000_000)
        ('950', '1.84M', '2.5B')
    """
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:,.0f}"


def _ago(seconds: float) -> str:
    """How long ago, in its largest unit.

    Example:
        >>> _ago(5), _ago(200), _ago(7300), _ago(300_000)
        ('5 s', '3 min', '2 h', '3 d')
    """
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"
