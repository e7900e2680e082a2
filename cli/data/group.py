"""`slm data`: prepare and pack text, inspect packs and chat data.

Invariant: one file per command.
"""

from __future__ import annotations

import click

from slm_fn.cli.lazy import LazyGroup

COMMANDS = {
    "prepare": ("data.prepare", "Clean a corpus of several sources and remove duplicates."),
    "pack": ("data.pack", "Encode text into packed shards."),
    "inspect": ("data.inspect", "Figures and samples of packs and chat data."),
}


@click.group("data", cls=LazyGroup, table=COMMANDS)
def command() -> None:
    """Prepare and pack text, inspect packs and chat data.

    \b
    Example:
        slm data pack --tokenizer tokenizer.json --in texts/ --out packed
        slm data inspect packed
    """
