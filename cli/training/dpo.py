"""`slm dpo`: train a model on preferences.

Invariant: parses and prints; the work is `pipeline.stages.dpo`.
"""

from __future__ import annotations

import click

from slm_fn.cli.training.finetune import FinetuneOptions, finetune_options, run_finetune


@click.command("dpo")
@finetune_options
def command(arguments: FinetuneOptions) -> None:
    """Train a model on preferred and rejected replies (JSONL of {"prompt", "chosen", "rejected"}).

    CONFIG is a file or the name of a preset; its [dpo] section is read.

    \b
    Example:
        slm dpo tiny --init runs/sft --data pairs.jsonl --out runs/dpo
    """
    from slm_fn.pipeline.stages.dpo import dpo

    run_finetune(dpo, "dpo", arguments)
