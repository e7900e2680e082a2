"""`slm device`: what this machine has.

Invariant: changes nothing, computes nothing.
"""

from __future__ import annotations

import click

from slm_fn.cli import options


@click.command("device")
@options.as_json
def command(as_json: bool) -> None:
    """Devices, precisions, memory and threads of this machine.

    \b
    Example:
        slm device --json
    """
    from slm_fn.core.device import describe

    found = describe()
    if as_json:
        options.print_json(found)
        return
    rows = [[d["device"], d["name"], d["precision"], d["memory_mib"]] for d in found["devices"]]
    options.print_table(f"auto means {found['auto']}", ["device", "name", "precision", "memory MiB"], rows)
    click.echo(f"{found['threads']} threads on {found['cpus']} CPUs, torch {found['torch']}, Python {found['python']}")
