"""`slm tokenizer train`: text to a tokenizer.

Invariant: the options are the fields of `TokenizerConfig`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slm_fn.cli import options, output

if TYPE_CHECKING:
    from slm_fn.pipeline.progress import ProgressDisplay
    from slm_fn.text.tokenizer import Tokenizer
    from slm_fn.text.training.train import TokenizerConfig

KINDS = ["bpe", "byte-fallback", "unigram", "char"]


@click.command("train")
@click.argument("inputs", nargs=-1, required=True, type=options.PATH)
@click.option("--out", required=True, type=options.PATH, help="tokenizer.json to write.")
@click.option(
    "--kind",
    default="bpe",
    show_default=True,
    type=click.Choice(KINDS),
    help="Tokenization algorithm.",
)
@click.option(
    "--method",
    default="fast",
    show_default=True,
    type=click.Choice(["fast", "heap", "basic"]),
    help="Implementation of BPE training; all give the same merges.",
)
@click.option(
    "--vocab-size",
    default=4096,
    show_default=True,
    help="Number of tokens, including bytes and special tokens.",
)
@click.option(
    "--min-frequency",
    default=2,
    show_default=True,
    help="Minimum number of occurrences for a pair to be merged.",
)
@click.option(
    "--pattern",
    default="qwen2",
    show_default=True,
    help="Pre-tokenization: qwen2, gpt2, cl100k, llama3 or a regular expression.",
)
@click.option(
    "--special", "specials", multiple=True, help="Additional special token. May be repeated."
)
@click.option(
    "--sample-bytes",
    default=1 << 29,
    show_default=True,
    help="Train on a sample of about this many bytes; 0: all.",
)
@click.option(
    "--max-lines",
    default=0,
    show_default=True,
    help="Train on at most this many lines; 0: all.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the sample.")
@click.option(
    "--coverage",
    default=0.9995,
    show_default=True,
    help="byte-fallback: share of characters that get a token.",
)
@click.option(
    "--alphabet",
    default="corpus",
    show_default=True,
    type=click.Choice(["corpus", "ascii"]),
    help="char: the set of characters.",
)
@options.column
@options.strict
@options.progress
@options.as_json
def command(
    inputs: tuple[Path, ...],
    out: Path,
    column: str,
    strict: bool,
    live: bool | None,
    as_json: bool,
    **fields: Any,
) -> None:
    """Train a tokenizer on files and folders of text, Markdown, JSONL and parquet.

    Files may be compressed with gzip or zstd.

    \b
    Example:
        slm tokenizer train texts/ --out tokenizer.json --vocab-size 4096
        slm tokenizer train corpus/ --out tokenizer.json --kind unigram --vocab-size 8000
    """
    import msgspec

    from slm_fn.pipeline import progress
    from slm_fn.pipeline.stages import train_tokenizer
    from slm_fn.text.training.train import TokenizerConfig

    config = msgspec.convert(fields, TokenizerConfig)
    total_bytes = train_tokenizer.estimate(inputs)
    total_bytes = min(total_bytes, config.sample_bytes or total_bytes)
    with (
        progress.show_progress("reading and training", total_bytes, live) as display,
        progress.limit_notes(display.note) as report_problem,
    ):
        tokenizer = train_tokenizer.train_from_files(
            config,
            inputs,
            out,
            None if strict else report_problem,
            _progress_updater(display, total_bytes, config.vocab_size),
            column,
        )
    _print_notes(tokenizer, config)
    _print_result(tokenizer, out, as_json)


def _progress_updater(
    display: ProgressDisplay, total_bytes: int, vocab_size: int
) -> Callable[[int, int], None]:
    """Returns a function that shows the bytes read and the tokens learned so far."""
    started = time.monotonic()

    def update(num_bytes: int, num_tokens: int) -> None:
        seconds = time.monotonic() - started
        status = f"{num_bytes / 1e6 / seconds:.1f} MB/s"
        if num_tokens:
            status = f"{num_tokens:,} of {vocab_size:,} tokens learned"
        display.update(min(num_bytes, total_bytes), status)

    return update


def _print_notes(tokenizer: Tokenizer, config: TokenizerConfig) -> None:
    from slm_fn.text import patterns

    warning = patterns.export_warning(tokenizer.pattern) if tokenizer.pattern else ""
    if warning:
        output.note(f"note: {warning}")
    if tokenizer.vocab_size < config.vocab_size and config.kind != "char":
        output.note(f"note: the text yields no more than {tokenizer.vocab_size:,} useful tokens")


def _print_result(tokenizer: Tokenizer, out: Path, as_json: bool) -> None:
    if not as_json:
        click.echo(
            f"{out}: {tokenizer.kind}, {tokenizer.vocab_size:,} tokens, "
            f"fingerprint {tokenizer.fingerprint[:12]}"
        )
        return
    output.print_json(
        {
            "path": str(out),
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "fingerprint": tokenizer.fingerprint,
        }
    )
