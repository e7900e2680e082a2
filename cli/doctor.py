"""`slm doctor`: whether training here is right, in some seconds.

Invariant: exit status 1 when something is wrong, and the line that says what.
"""

from __future__ import annotations

import click

from slm_fn.cli import options

MARKS = {"good": "ok", "bad": "WRONG", "note": "note"}


@click.command("doctor")
@click.option("--determinism", is_flag=True, help="Only whether three steps taken twice are bit-equal.")
@click.option("--compile", "compile", is_flag=True, help="Try torch.compile too (half a minute).")
@options.device
@options.as_json
@click.pass_context
def command(context: click.Context, determinism: bool, compile: bool, device: str, as_json: bool) -> None:
    """Compare a step on the device with the CPU's, a run with its repetition, and the kernels with each other.

    \b
    Example:
        slm doctor
        slm doctor --device cuda --compile
        slm doctor --determinism
    """
    from slm_fn.pipeline.doctor import examine

    found = examine(device, compile, determinism, options.note)
    if as_json:
        options.print_json(found)
    else:
        title = f"{found.device}: {found.name}, {found.threads} threads, torch {found.torch}"
        rows = [[MARKS[finding.status], finding.check, finding.detail] for finding in found.findings]
        options.print_table(title, ["", "check", "found"], rows)
        wrong = sum(finding.status == "bad" for finding in found.findings)
        click.echo("all is well" if found.healthy else f"{wrong} of {len(rows)} checks went wrong")
    if not found.healthy:
        context.exit(1)
