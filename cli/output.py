"""How commands print notes, JSON and tables.

Invariant: results go to standard output, progress and notes to standard error.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from slm_fn.pipeline.training.loop import TrainResult

UNLIMITED_WIDTH = 10_000


def note(text: str) -> None:
    """Print a line on standard error."""
    click.echo(text, err=True)


def printable(text: str) -> str:
    """Returns a text without control characters, so that it cannot move the terminal's cursor.

    Example:
        >>> printable("a\\x1b[2Jb")
        'a[2Jb'
    """
    return "".join(char for char in text if char in "\n\t" or char.isprintable())


def print_json(value: Any) -> None:
    """Print one JSON value on standard output."""
    import msgspec

    click.echo(msgspec.json.encode(value).decode())


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    optional_columns: Sequence[str] = (),
) -> None:
    """Print a table on standard output.

    In a pipe the table is as wide as its cells. On a narrow terminal cells are folded, never cut.

    Args:
        optional_columns: columns to leave out, in this order, while the table is wider than the
            terminal.
    """
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = UNLIMITED_WIDTH
    shown = list(range(len(columns)))
    removable = [columns.index(name) for name in optional_columns]
    table = _build_table(title, columns, rows, shown)
    while removable and _table_width(console, table) > console.width:
        shown.remove(removable.pop(0))
        table = _build_table(title, columns, rows, shown)
    console.print(table)


def _build_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], shown: Sequence[int]
) -> Table:
    """Returns a table of the columns with the indices `shown`."""
    from rich.table import Table
    from rich.text import Text

    # Text instead of str: square brackets in the data are not markup.
    table = Table(title=Text(title), title_justify="left")
    for index in shown:
        table.add_column(columns[index], overflow="fold")
    for row in rows:
        cells = ["" if row[index] is None else str(row[index]) for index in shown]
        table.add_row(*map(Text, cells))
    return table


def _table_width(console: Console, table: Table) -> int:
    """Returns the width of a table none of whose cells is folded."""
    unlimited = console.options.update(max_width=UNLIMITED_WIDTH)
    return table.__rich_measure__(console, unlimited).maximum


def print_run(result: TrainResult, as_json: bool) -> None:
    """Print the checkpoint and the final metrics of a run; in a distributed run on rank 0 only."""
    if int(os.environ.get("RANK", "0")):
        return
    figures = {
        "step": result.progress.step,
        "tokens": result.progress.tokens,
        "seconds": round(result.progress.seconds, 1),
    }
    figures |= {name: round(value, 6) for name, value in result.metrics.items()}
    if as_json:
        print_json({"checkpoint": str(result.checkpoint), **figures})
        return
    text = "  ".join(f"{name} {value}" for name, value in figures.items())
    click.echo(f"{result.checkpoint}  {text}")
