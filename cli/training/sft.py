"""`slm sft`: fine-tune a model on conversations.

Invariant: parses and prints; the work is `pipeline.stages.sft`.
"""

from __future__ import annotations

import click

from slm_fn.cli.training.finetune import FinetuneOptions, finetune_options, run_finetune


@click.command("sft")
@finetune_options
def command(arguments: FinetuneOptions) -> None:
    """Fine-tune a model on conversations (JSONL of {"messages": [...]}).

    CONFIG is a file or the name of a preset; its [sft] section is read.

    \b
    Example:
        slm sft tiny --init runs/pretrain --data chat.jsonl --out runs/sft
    """
    from slm_fn.pipeline.stages.sft import sft

    run_finetune(sft, "sft", arguments)
