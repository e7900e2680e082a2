"""`slm data pack`: text files to packed shards.

Invariant: the options are the fields of `PackConfig`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slm_fn.cli import options, output

if TYPE_CHECKING:
    from slm_fn.data.pack.dataset import Split


@click.command("pack")
@click.option(
    "--tokenizer", "tokenizer_file", required=True, type=options.PATH, help="tokenizer.json"
)
@options.paths(
    "--in",
    "File or folder of .txt, .md, .jsonl or .parquet, also compressed as .gz or .zst.",
    "inputs",
)
@options.out
@click.option("--seq-len", default=256, show_default=True, help="Tokens that a window predicts.")
@click.option("--shard-size", default=1 << 24, show_default=True, help="Tokens per shard file.")
@click.option(
    "--val-fraction",
    default=0.05,
    show_default=True,
    help="Fraction to hold out, chosen by a hash of the text.",
)
@click.option(
    "--val-name", "val_names", multiple=True, help="Document to hold out. May be repeated."
)
@click.option(
    "--split-by",
    type=click.Choice(["document", "block"]),
    default="document",
    show_default=True,
    help="Hold out complete documents, or blocks of about 16,000 characters (for few long "
    "documents).",
)
@options.column
@click.option(
    "--workers",
    "num_workers",
    default=0,
    show_default=True,
    help="Worker processes; 0 encodes in this process.",
)
@options.strict
@options.progress
@options.as_json
def command(
    tokenizer_file: Path,
    inputs: tuple[Path, ...],
    out: Path,
    strict: bool,
    live: bool | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Encode files and folders of text into packed shards.

    Input that cannot be read is reported and counted, and the rest is packed. The same command
    resumes an interrupted pack.

    \b
    Example:
        slm data pack --tokenizer tokenizer.json --in texts/ --out packed
        slm data pack --tokenizer tokenizer.json --in book.txt --out packed --split-by block
    """
    import msgspec

    from slm_fn.pipeline.stages.pack import PackConfig, pack_files
    from slm_fn.text.tokenizer import Tokenizer

    config = PackConfig(**settings)
    tokenizer = Tokenizer.load(tokenizer_file)
    info, num_problems = pack_files(config, tokenizer, inputs, out, strict, live)
    if as_json:
        output.print_json({**msgspec.to_builtins(info), "problems": num_problems})
        return
    rows = [_split_cells(name, split) for name, split in info.splits.items()]
    output.print_table(str(out), ["split", "documents", "tokens", "bytes", "shards"], rows)


def _split_cells(name: str, split: Split) -> list[Any]:
    return [
        name,
        split.documents,
        f"{split.tokens:,}",
        f"{split.num_bytes:,}",
        len(split.shards),
    ]
