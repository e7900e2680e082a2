"""`slm runs`: a table of the runs in a folder.

Invariant: reads run.json and metrics.jsonl; a run that is being written is shown as far as it got.
"""

from __future__ import annotations

from pathlib import Path

import click

from slm_fn.cli import options


@click.command("runs")
@click.argument("folder", default=".", type=click.Path(path_type=Path, exists=True))
@options.as_json
def command(folder: Path, as_json: bool) -> None:
    """A table of the training runs under FOLDER.

    \b
    Example:
        slm runs demo
    """
    from slm_fn.train import runlog

    rows = runlog.table(folder)
    if not rows:
        raise ValueError(f"{folder}: no run folders here (a run holds {runlog.RUN})")
    if as_json:
        options.print_json(rows)
    else:
        options.print_table(str(folder), list(rows[0]), [list(row.values()) for row in rows])
