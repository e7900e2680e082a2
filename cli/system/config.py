"""`slm config`: every value of a config and its origin.

Invariant: prints the config that a stage would run with.
"""

from __future__ import annotations

import click

from slm_fn.cli import options, output


@click.group("config")
def command() -> None:
    """Show a config, and the origin of each value.

    \b
    Example:
        slm config show tiny
    """


@command.command("show")
@click.argument("config")
@options.overrides
@options.as_json
def show(config: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show every value of CONFIG (a file or the name of a preset) and its origin.

    \b
    Example:
        slm config show tiny --set pretrain.optim.learning_rate=1e-3
    """
    from slm_fn import config as configs

    rows = configs.origins(config, overrides)
    if as_json:
        values = {key: {"value": value, "from": origin} for key, value, origin in rows}
        output.print_json(values)
    else:
        output.print_table(config, ["key", "value", "from"], rows)
