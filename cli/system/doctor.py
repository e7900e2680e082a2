"""`slm doctor`: checks in a few seconds that training on a device is correct.

Invariant: the exit status is 1 when a check fails, and a line says which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slm_fn.cli import options, output

if TYPE_CHECKING:
    from slm_fn.pipeline.planning.doctor import Diagnosis

LABELS = {"good": "ok", "bad": "WRONG", "note": "note"}


@click.command("doctor")
@click.option(
    "--determinism",
    is_flag=True,
    help="Check only that three training steps, run twice, are bit-equal.",
)
@click.option(
    "--compile", "compile", is_flag=True, help="Also check torch.compile (half a minute)."
)
@options.device
@options.as_json
def command(determinism: bool, compile: bool, device: str, as_json: bool) -> None:
    """Check a device: gradients against the CPU, a repeated run, and kernels against each other.

    \b
    Example:
        slm doctor
        slm doctor --device cuda --compile
        slm doctor --determinism
    """
    from slm_fn.pipeline.planning.doctor import examine

    diagnosis = examine(device, compile, determinism, output.note)
    if as_json:
        output.print_json(diagnosis)
    else:
        _print_diagnosis(diagnosis)
    if not diagnosis.healthy:
        click.get_current_context().exit(1)


def _print_diagnosis(diagnosis: Diagnosis) -> None:
    title = (
        f"{diagnosis.device}: {diagnosis.name}, {diagnosis.threads} threads, "
        f"torch {diagnosis.torch}"
    )
    rows = [
        [LABELS[finding.status], finding.check, finding.detail] for finding in diagnosis.findings
    ]
    output.print_table(title, ["", "check", "result"], rows)
    if diagnosis.healthy:
        click.echo("all checks passed")
        return
    num_failed = sum(finding.status == "bad" for finding in diagnosis.findings)
    click.echo(f"{num_failed} of {len(rows)} checks failed")
