"""`slm bench`: speed on this machine, beside a peer or the machine's own limit.

Invariant: one file per command.
"""

from __future__ import annotations

import click

from slm_fn.cli.lazy import LazyGroup

COMMANDS = {
    "train": ("bench_train", "A training step, beside the machine's matmul rate and other trainers."),
    "serve": ("bench_serve", "A server under load: speed, wrong words, memory, beside llama.cpp."),
    "decode": ("bench_decode", "Generating, beside the memory's read rate, transformers and llama.cpp."),
    "tokenizer": ("bench_tokenizer", "Learning, encoding and packing, beside Hugging Face tokenizers."),
}


@click.group("bench", cls=LazyGroup, table=COMMANDS)
def command() -> None:
    """Measure speed on this machine.

    \b
    Example:
        slm bench train --peer transformers
        slm bench decode
    """
