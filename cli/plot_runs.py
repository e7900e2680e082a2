"""`slm runs plot`: loss and other curves of runs, as a picture or a page.

Invariant: the ending of --out chooses the form; nothing is written where nothing can be drawn.
"""

from __future__ import annotations

from pathlib import Path

import click


@click.command("plot")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A file that ends in .html, .svg or .png.")
@click.option(
    "--x",
    "xs",
    multiple=True,
    type=click.Choice(["steps", "tokens", "seconds", "flops"]),
    help="Draw the loss against this; may be repeated. Default: steps; of several runs, all that they count.",
)
@click.option(
    "--keys",
    multiple=True,
    metavar="KEY,KEY...",
    help="More columns of metrics.jsonl, such as lr, grad_norm, tok_per_s; a prefix such as acts/ takes all of them.",
)
@click.option("--log-y", is_flag=True, help="Losses on a logarithmic axis.")
@click.option("--smooth", type=click.FloatRange(min=0), help="Average over about this many log lines; 0: none.")
def command(
    folders: tuple[Path, ...], out: Path, xs: tuple[str, ...], keys: tuple[str, ...], log_y: bool, smooth: float | None
) -> None:
    """Draw the curves of one run or several: FOLDERS are run folders, or folders that hold some.

    Thin are the means over the steps between two log lines, thick their average, dots are validation.

    \b
    Example:
        slm runs plot demo --out curves.html
        slm runs plot runs/a runs/b --out loss.png --x tokens --x seconds --log-y
        slm runs plot runs/a --out inside.svg --keys acts/,grad_norm/
    """
    from slm_fn.pipeline import plot_runs

    names = [name for group in keys for name in group.split(",") if name]
    click.echo(plot_runs.draw(folders, out, xs, names, log_y, smooth))
