"""`slm data inspect`: look into packs, corpora and chat data.

Invariant: what is coloured as trained is the mask that training uses.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slm_fn.cli import options

if TYPE_CHECKING:
    from slm_fn.pipeline.inspect import Seen

FOLDER = click.Path(path_type=Path)


@click.command("inspect")
@click.argument("path", type=FOLDER)
@click.option("--num", default=3, show_default=True, help="Samples to show.")
@click.option("--tokenizer", "tokenizer_file", type=FOLDER, help="tokenizer.json, pack or model; chat data needs one.")
@click.option("--plot", type=FOLDER, metavar="FILE.png|svg", help="Draw lengths and frequencies too.")
@options.as_json
def command(path: Path, num: int, tokenizer_file: Path | None, plot: Path | None, as_json: bool) -> None:
    """Counts, lengths and samples of PATH: a pack, a prepared corpus, texts, chat data or preference pairs.

    Checksums of packs and prepared corpora are verified. Chat data is shown token by token, what is trained in green.

    \b
    Example:
        slm data inspect demo/packed --plot packed.png
        slm data inspect demo/data/chat.jsonl --tokenizer demo/tokenizer.json
    """
    from slm_fn.pipeline import plot as plots
    from slm_fn.pipeline.inspect import inspect

    if plot is not None:
        plots.check(plot)
    seen = inspect(path, num, tokenizer_file)
    if plot is not None:
        plots.save(seen.panels, plot)
    if as_json:
        told = {"kind": seen.kind, "figures": seen.figures, "lengths": seen.lengths, "samples": seen.samples}
        options.print_json({**told, "plot": None if plot is None else str(plot)})
        return
    _show(path, seen)
    if plot is not None:
        click.echo(f"\n{plot}: {len(seen.panels)} diagrams")


def _show(path: Path, seen: Seen) -> None:
    from slm_fn.pipeline import lengths

    unit = {"pack": "tokens", "chat": "tokens", "pairs": "tokens"}.get(seen.kind, "bytes")
    problems = seen.figures.pop("first_problems", [])
    options.print_table(
        f"{path}: {seen.kind}", ["", ""], [[name, _number(value)] for name, value in seen.figures.items()]
    )
    for name, found in seen.lengths.items():
        click.echo(f"\n{name} lengths: {lengths.told(found, unit)}")
        for line in lengths.bars(found):
            click.echo(line)
    for problem in problems:
        options.note(problem)
    for sample in seen.samples:
        click.echo()
        if "tokens" in sample:
            _colour(sample)
        else:
            click.echo("--- " + " ".join(str(value) for name, value in sample.items() if name != "text"))
            click.echo(options.printable(sample["text"]))


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _colour(sample: dict[str, Any]) -> None:
    tokens = sample["tokens"]
    shown = (click.style(options.printable(t["text"]), fg="green" if t["trained"] else "bright_black") for t in tokens)
    click.echo("".join(shown))
    click.echo(f"    {sample['name']}: {sample['trained']} of {len(tokens)} tokens trained")
