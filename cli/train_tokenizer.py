"""`slm tokenizer train`: text to a tokenizer.

Invariant: the options are the fields of `TokenizerConfig`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from slm_fn.cli import options

FILE = click.Path(path_type=Path)
KINDS = ["bpe", "byte-fallback", "unigram", "char"]


@click.command("train")
@click.argument("inputs", nargs=-1, required=True, type=FILE)
@click.option("--out", required=True, type=FILE, help="tokenizer.json to write.")
@click.option("--kind", default="bpe", show_default=True, type=click.Choice(KINDS), help="What its tokens are made of.")
@click.option(
    "--method",
    default="fast",
    show_default=True,
    type=click.Choice(["fast", "heap", "basic"]),
    help="The same merges by each.",
)
@click.option("--vocab-size", default=4096, show_default=True, help="Tokens, bytes and control tokens included.")
@click.option("--min-frequency", default=2, show_default=True, help="A pair rarer than this is not merged.")
@click.option("--pattern", default="qwen2", show_default=True, help="qwen2, gpt2, cl100k, llama3 or an expression.")
@click.option("--special", "specials", multiple=True, help="One more control token. May be repeated.")
@click.option(
    "--sample-bytes", default=1 << 29, show_default=True, help="Learn from about so much of a large corpus; 0: all."
)
@click.option("--max-lines", default=0, show_default=True, help="Learn from at most so many lines; 0: all.")
@click.option("--seed", default=0, show_default=True, help="Which sample is drawn.")
@click.option("--coverage", default=0.9995, show_default=True, help="byte-fallback: share of characters with a token.")
@click.option(
    "--alphabet",
    default="corpus",
    show_default=True,
    type=click.Choice(["corpus", "ascii"]),
    help="char: which characters.",
)
@options.column
@options.strict
@options.progress
@options.as_json
def command(
    inputs: tuple[Path, ...], out: Path, column: str, strict: bool, live: bool | None, as_json: bool, **fields: Any
) -> None:
    """Train a tokenizer on files and folders of text, Markdown, JSONL and parquet, gzip and zstd too.

    \b
    Example:
        slm tokenizer train texts/ --out tokenizer.json --vocab-size 4096
        slm tokenizer train corpus/ --out tokenizer.json --kind unigram --vocab-size 8000
    """
    import msgspec

    from slm_fn.pipeline import progress, tokenize
    from slm_fn.text import patterns

    config = msgspec.convert(fields, tokenize.TokenizerConfig)
    total, begun = tokenize.estimate(inputs), time.monotonic()
    total = min(total, config.sample_bytes or total)
    with (
        progress.display("reading and learning", total, live) as shown,
        progress.counted(shown.note) as problem,
    ):

        def update(read: int, pieces: int) -> None:
            speed = f"{read / 1e6 / (time.monotonic() - begun):.1f} MB/s"
            shown.update(min(read, total), f"{pieces:,} of {config.vocab_size:,} tokens learnt" if pieces else speed)

        made = tokenize.train_from_files(config, inputs, out, None if strict else problem, update, column)
    closed = patterns.closes(made.pattern) if made.pattern else ""
    if closed:
        options.note(f"note: {closed}")
    if made.vocab_size < config.vocab_size and config.kind != "char":
        options.note(f"note: the text holds no more than {made.vocab_size:,} tokens worth having")
    if as_json:
        options.print_json(
            {"path": str(out), "kind": made.kind, "vocab_size": made.vocab_size, "fingerprint": made.fingerprint}
        )
    else:
        click.echo(f"{out}: {made.kind}, {made.vocab_size:,} tokens, fingerprint {made.fingerprint[:12]}")
