"""`slm bench`: speed on this machine, compared with peers or with the machine's own limit.

Invariant: one file per command.
"""

from __future__ import annotations

import click

from slm_fn.cli.lazy import LazyGroup

COMMANDS = {
    "train": (
        "bench.train",
        "Training, compared with the machine's matmul rate and other trainers.",
    ),
    "serve": (
        "bench.serve",
        "A server under load: speed, correctness, memory, compared with llama.cpp.",
    ),
    "decode": (
        "bench.decode",
        "Decoding, compared with the memory bandwidth, transformers and llama.cpp.",
    ),
    "tokenizer": (
        "bench.tokenizer",
        "Tokenizer training, encoding and packing, compared with Hugging Face tokenizers.",
    ),
}


@click.group("bench", cls=LazyGroup, table=COMMANDS)
def command() -> None:
    """Measure speed on this machine.

    \b
    Example:
        slm bench train --peer transformers
        slm bench decode
    """
