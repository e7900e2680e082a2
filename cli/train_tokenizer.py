"""`slm tokenizer train`: text to a tokenizer.

Invariant: the options are those of `TokenizerConfig`.
"""

from __future__ import annotations

from pathlib import Path

import click

from slm_fn.cli import options

FILE = click.Path(path_type=Path)


@click.command("train")
@click.argument("inputs", nargs=-1, required=True, type=FILE)
@click.option("--out", required=True, type=FILE, help="tokenizer.json to write.")
@click.option("--vocab-size", default=4096, show_default=True, help="Tokens, bytes and control tokens included.")
@click.option("--min-frequency", default=2, show_default=True, help="A pair rarer than this is not merged.")
@options.as_json
def command(inputs: tuple[Path, ...], out: Path, vocab_size: int, min_frequency: int, as_json: bool) -> None:
    """Train a byte-level BPE on files and folders of .txt, .md and .jsonl.

    \b
    Example:
        slm tokenizer train texts/ --out tokenizer.json --vocab-size 4096
    """
    from slm_fn.config import TokenizerConfig
    from slm_fn.pipeline.tokenize import train_from_files

    made = train_from_files(TokenizerConfig(vocab_size, min_frequency), inputs, out)
    if as_json:
        options.print_json({"path": str(out), "vocab_size": made.vocab_size, "fingerprint": made.fingerprint})
    else:
        click.echo(f"{out}: {made.vocab_size:,} tokens, fingerprint {made.fingerprint[:12]}")
