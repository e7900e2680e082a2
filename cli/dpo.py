"""`slm dpo`: train a model on preferences.

Invariant: parses and prints; the work is `pipeline.dpo`.
"""

from __future__ import annotations

from typing import Any

import click

from slm_fn.cli import options


@click.command("dpo")
@options.tuning
def command(**told: Any) -> None:
    """Train a model on preferred and rejected replies (JSONL of {"prompt", "chosen", "rejected"}).

    CONFIG is a file or the name of a preset; its [dpo] section is read.

    \b
    Example:
        slm dpo tiny --init runs/sft --data pairs.jsonl --out runs/dpo
    """
    from slm_fn.pipeline.dpo import dpo

    options.tune(dpo, "dpo", told)
