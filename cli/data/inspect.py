"""`slm data inspect`: figures and samples of packs, corpora and chat data.

Invariant: the tokens shown in green are the loss mask that training uses.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slm_fn.cli import options, output

if TYPE_CHECKING:
    from slm_fn.pipeline.reports.data_report import DataReport

TOKEN_KINDS = ("pack", "chat", "pairs")


@click.command("inspect")
@click.argument("path", type=options.PATH)
@click.option("--num", default=3, show_default=True, help="Number of samples to show.")
@click.option(
    "--tokenizer",
    "tokenizer_file",
    type=options.PATH,
    help="tokenizer.json, pack or model; required for chat data.",
)
@click.option(
    "--plot",
    type=options.PATH,
    metavar="FILE.png|svg",
    help="Plot lengths and frequencies into this file.",
)
@options.as_json
def command(
    path: Path, num: int, tokenizer_file: Path | None, plot: Path | None, as_json: bool
) -> None:
    """Show counts, lengths and samples of PATH.

    PATH is a pack, a prepared corpus, texts, chat data or preference pairs. Checksums of packs and
    prepared corpora are verified. Chat data is shown token by token, trained tokens in green.

    \b
    Example:
        slm data inspect demo/packed --plot packed.png
        slm data inspect demo/data/chat.jsonl --tokenizer demo/tokenizer.json
    """
    from slm_fn.pipeline.reports import text_plots as plots
    from slm_fn.pipeline.reports.inspect_data import inspect

    if plot is not None:
        plots.check_path(plot)
    report = inspect(path, num, tokenizer_file)
    if plot is not None:
        plots.save(report.panels, plot)
    if as_json:
        output.print_json(_json_object(report, plot))
        return
    _print_report(path, report)
    if plot is not None:
        click.echo(f"\n{plot}: {len(report.panels)} plots")


def _json_object(report: DataReport, plot: Path | None) -> dict[str, Any]:
    return {
        "kind": report.kind,
        "figures": report.figures,
        "lengths": report.lengths,
        "samples": report.samples,
        "plot": None if plot is None else str(plot),
    }


def _print_report(path: Path, report: DataReport) -> None:
    from slm_fn.pipeline.reports import histogram

    unit = "tokens" if report.kind in TOKEN_KINDS else "bytes"
    figures = dict(report.figures)
    problems = figures.pop("first_problems", [])
    rows = [[name, _format(value)] for name, value in figures.items()]
    output.print_table(f"{path}: {report.kind}", ["", ""], rows)
    for name, lengths in report.lengths.items():
        click.echo(f"\n{name} lengths: {histogram.format_quantiles(lengths, unit)}")
        for line in histogram.format_bars(lengths):
            click.echo(line)
    for problem in problems:
        output.note(problem)
    for sample in report.samples:
        click.echo()
        _print_sample(sample)


def _print_sample(sample: dict[str, Any]) -> None:
    if "tokens" in sample:
        _print_tokens(sample)
        return
    labels = [str(value) for name, value in sample.items() if name != "text"]
    click.echo("--- " + " ".join(labels))
    click.echo(output.printable(sample["text"]))


def _print_tokens(sample: dict[str, Any]) -> None:
    """Print a conversation's tokens, those that the loss counts in green."""
    tokens = sample["tokens"]
    click.echo("".join(map(_style_token, tokens)))
    click.echo(f"    {sample['name']}: {sample['trained']} of {len(tokens)} tokens trained")


def _style_token(token: dict[str, Any]) -> str:
    color = "green" if token["trained"] else "bright_black"
    return click.style(output.printable(token["text"]), fg=color)


def _format(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
