"""`slm sft`: fine-tune a model on conversations.

Invariant: parses and prints; the work is `pipeline.sft`.
"""

from __future__ import annotations

from typing import Any

import click

from slm_fn.cli import options


@click.command("sft")
@options.tuning
def command(**told: Any) -> None:
    """Fine-tune a model on conversations (JSONL of {"messages": [...]}).

    CONFIG is a file or the name of a preset; its [sft] section is read.

    \b
    Example:
        slm sft tiny --init runs/pretrain --data chat.jsonl --out runs/sft
    """
    from slm_fn.pipeline.sft import sft

    options.tune(sft, "sft", told)
