"""`slm demo`: every stage on the embedded corpus, then how to chat with the model.

Invariant: prints what `pipeline.stages.demo` measured; computes nothing itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slm_fn.cli import options, output

if TYPE_CHECKING:
    from slm_fn.pipeline.stages.demo import DemoReport, StageRow

COLUMNS = ["stage", "seconds", "tokens", "held-out loss", "bits per byte", "preference"]


@click.command("demo")
@click.option("--out", default="demo", show_default=True, type=options.PATH, help="Output folder.")
@click.option("--preset", default="tiny", show_default=True, help="Config file or preset.")
@click.option(
    "--quick",
    is_flag=True,
    help="Run every stage for a few steps only: a minute, and little is learned.",
)
@options.overrides
@options.device
@options.progress
@options.as_json
def command(
    out: Path,
    preset: str,
    quick: bool,
    overrides: tuple[str, ...],
    device: str,
    live: bool | None,
    as_json: bool,
) -> None:
    """Train a chat model from text: 36 plays of Shakespeare and some 900 conversations.

    It takes minutes on two CPU cores.

    \b
    Example:
        slm demo --quick --out /tmp/demo
    """
    from slm_fn.pipeline.stages.demo import demo

    report = demo(out, preset, quick, overrides, device, live, output.note)
    if as_json:
        output.print_json(report)
    else:
        _print_report(report)


def _print_report(report: DemoReport) -> None:
    rows = [_stage_cells(row) for row in report.rows]
    rows.append(["total", f"{report.seconds:.1f}", "", "", "", ""])
    title = "slm demo: every figure is measured on held-out plays, prompts and replies"
    output.print_table(title, COLUMNS, rows)
    replies = report.preferred_replies
    click.echo(
        f"{replies.replies} replies to held-out prompts: "
        f"{replies.ended:.1%} ended with a stop token, {replies.empty:.1%} empty, "
        f"{replies.distinct:.1%} distinct; DPO changed the log-probability of chosen replies by "
        f"{report.chosen_change_nats_per_token:+.3f} nats per token\n"
    )
    for question, answer in report.samples:
        click.echo(f"  you    {question}\n  model  {answer}\n")
    click.echo(f"Chat in the browser:   slm serve {report.model}")
    click.echo(f"Chat in the terminal:  slm chat {report.model}")


def _stage_cells(row: StageRow) -> list[str]:
    return [
        row.stage,
        f"{row.seconds:.1f}",
        _format(row.tokens, ","),
        _format(row.loss, ".3f"),
        _format(row.bits_per_byte, ".3f"),
        _format(row.preference_accuracy, ".1%"),
    ]


def _format(value: float | None, spec: str) -> str:
    return "" if value is None else format(value, spec)
