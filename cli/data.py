"""`slm data`: pack text, inspect packs and chat data.

Invariant: one file per command.
"""

from __future__ import annotations

import click

from slm_fn.cli.lazy import LazyGroup

COMMANDS = {
    "pack": ("pack", "Encode text into packed shards."),
    "inspect": ("inspect", "Figures and samples of packs and chat data."),
}


@click.group("data", cls=LazyGroup, table=COMMANDS)
def command() -> None:
    """Pack text, inspect packs and chat data."""
