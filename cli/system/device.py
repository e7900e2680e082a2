"""`slm device`: the devices of this machine.

Invariant: changes nothing, computes nothing.
"""

from __future__ import annotations

import click

from slm_fn.cli import options, output


@click.command("device")
@options.as_json
def command(as_json: bool) -> None:
    """Show the devices, precisions, memory and threads of this machine.

    \b
    Example:
        slm device --json
    """
    from slm_fn.core.device import describe

    info = describe()
    if as_json:
        output.print_json(info)
        return
    keys = ("device", "name", "precision", "memory_mib")
    rows = [[device[key] for key in keys] for device in info["devices"]]
    columns = ["device", "name", "precision", "memory MiB"]
    output.print_table(f"auto selects {info['auto']}", columns, rows)
    click.echo(
        f"{info['threads']} threads on {info['cpus']} CPUs, "
        f"torch {info['torch']}, Python {info['python']}"
    )
