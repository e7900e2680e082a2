"""`slm runs plot`: loss and other curves of runs, as an image or an HTML page.

Invariant: the suffix of --out chooses the format; nothing is written where nothing can be drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slm_fn.cli import options

if TYPE_CHECKING:
    from slm_fn.pipeline.reports.charts import XAxis


@click.command("plot")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option(
    "--out",
    required=True,
    type=options.PATH,
    help="Output file; its suffix is .html, .svg or .png.",
)
@click.option(
    "--x",
    "xs",
    multiple=True,
    type=click.Choice(["steps", "tokens", "seconds", "flops"]),
    help="Quantity on the x axis of the loss. May be repeated. Default: steps; for several runs, "
    "all that the runs record.",
)
@click.option(
    "--keys",
    multiple=True,
    metavar="KEY,KEY...",
    help="Further columns of metrics.jsonl to plot, such as lr, grad_norm, tok_per_s; a prefix "
    "such as acts/ selects all columns below it.",
)
@click.option("--log-y", is_flag=True, help="Logarithmic axis for losses.")
@click.option(
    "--smooth",
    type=click.FloatRange(min=0),
    help="Average over about this many log lines; 0: none.",
)
def command(
    folders: tuple[Path, ...],
    out: Path,
    xs: tuple[XAxis, ...],
    keys: tuple[str, ...],
    log_y: bool,
    smooth: float | None,
) -> None:
    """Plot the curves of one or more runs: FOLDERS are run folders, or folders that contain some.

    Thin lines are means over the steps between two log lines, thick lines their moving average,
    dots are validation losses.

    \b
    Example:
        slm runs plot demo --out curves.html
        slm runs plot runs/a runs/b --out loss.png --x tokens --x seconds --log-y
        slm runs plot runs/a --out inside.svg --keys acts/,grad_norm/
    """
    from slm_fn.pipeline.reports import plot_runs

    names = [name for name in ",".join(keys).split(",") if name]
    click.echo(plot_runs.draw(folders, out, xs, names, log_y, smooth))
