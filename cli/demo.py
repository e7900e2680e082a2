"""`slm demo`: the whole road on the embedded corpus, then how to chat.

Invariant: shows what `pipeline.demo` measured; computes nothing itself.
"""

from __future__ import annotations

from pathlib import Path

import click

from slm_fn.cli import options


@click.command("demo")
@click.option("--out", default="demo", show_default=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--preset", default="tiny", show_default=True, help="Config file or preset.")
@click.option("--quick", is_flag=True, help="A minute instead of several: everything runs, little is learned.")
@options.overrides
@options.device
@options.progress
@options.as_json
def command(
    out: Path, preset: str, quick: bool, overrides: tuple[str, ...], device: str, live: bool | None, as_json: bool
) -> None:
    """Text to chat: 36 plays of Shakespeare and some 900 conversations, in minutes on two CPU cores.

    \b
    Example:
        slm demo --quick --out /tmp/demo
    """
    from slm_fn.pipeline.demo import demo

    report = demo(out, preset, quick, overrides, device, live, options.note)
    if as_json:
        options.print_json(report)
        return
    rows = [
        [r.stage, f"{r.seconds:.1f}", _number(r.tokens, ","), _number(r.loss, ".3f"), _number(r.bits_per_byte, ".3f"),
         _number(r.preference_accuracy, ".1%")]
        for r in report.rows
    ]  # fmt: skip
    rows.append(["total", f"{report.seconds:.1f}", "", "", "", ""])
    columns = ["stage", "seconds", "tokens", "held-out loss", "bits per byte", "preference"]
    options.print_table("slm demo: every figure is on held-out plays, prompts and replies", columns, rows)
    after = report.preferred_replies
    click.echo(
        f"{after.replies} replies to held-out prompts: {after.ended:.1%} ended by themselves, {after.empty:.1%} empty, "
        f"{after.distinct:.1%} distinct; chosen replies' log-probability moved by "
        f"{report.chosen_change_nats_per_token:+.3f} nats per token in DPO\n"
    )
    for question, answer in report.samples:
        click.echo(f"  you    {question}\n  model  {answer}\n")
    click.echo(
        f"Talk to it in the browser:   slm serve {report.model}\nor in the terminal:          slm chat {report.model}"
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
