"""`slm config`: every value of a config and where it came from.

Invariant: prints what a stage would be run with.
"""

from __future__ import annotations

import click

from slm_fn.cli import options


@click.group("config")
def command() -> None:
    """Show a config, and where each value came from.

    \b
    Example:
        slm config show tiny
    """


@command.command("show")
@click.argument("config")
@options.overrides
@options.as_json
def show(config: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Every value of CONFIG (a file or the name of a preset) and where it came from.

    \b
    Example:
        slm config show tiny --set pretrain.optim.learning_rate=1e-3
    """
    from slm_fn import config as configs

    rows = configs.origins(config, overrides)
    if as_json:
        options.print_json({dotted: {"value": value, "from": origin} for dotted, value, origin in rows})
    else:
        options.print_table(config, ["key", "value", "from"], rows)
