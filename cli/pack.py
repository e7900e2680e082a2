"""`slm data pack`: text files to packed shards.

Invariant: the options are those of `PackConfig`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from slm_fn.cli import options

FOLDER = click.Path(path_type=Path)


@click.command("pack")
@click.option("--tokenizer", "tokenizer_file", required=True, type=FOLDER, help="tokenizer.json")
@options.files("--in", "File or folder of .txt, .md, .jsonl or .parquet, these with .gz or .zst too.", letter="inputs")
@options.out
@click.option("--seq-len", default=256, show_default=True, help="Tokens a window predicts.")
@click.option("--shard-size", default=1 << 24, show_default=True, help="Tokens per shard file.")
@click.option("--val-fraction", default=0.05, show_default=True, help="Share held out, by a hash of the text.")
@click.option("--val-name", "val_names", multiple=True, help="Hold this document out. May be repeated.")
@click.option(
    "--split-by",
    type=click.Choice(["document", "block"]),
    default="document",
    show_default=True,
    help="Hold out whole documents, or blocks of some 16,000 characters (for few long documents).",
)
@options.column
@click.option("--workers", "num_workers", default=0, show_default=True, help="Worker processes; 0 encodes in this one.")
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

    What cannot be read is told and counted, and the rest is packed. A pack that was killed goes on where it was when
    the same command is given again.

    \b
    Example:
        slm data pack --tokenizer tokenizer.json --in texts/ --out packed
        slm data pack --tokenizer tokenizer.json --in book.txt --out packed --split-by block
    """
    import msgspec

    from slm_fn.pipeline.pack import PackConfig, pack_files
    from slm_fn.text.tokenizer import Tokenizer

    info, problems = pack_files(PackConfig(**settings), Tokenizer.load(tokenizer_file), inputs, out, strict, live)
    if as_json:
        options.print_json({**msgspec.to_builtins(info), "problems": problems})
        return
    rows = [[n, s.documents, f"{s.tokens:,}", f"{s.num_bytes:,}", len(s.shards)] for n, s in info.splits.items()]
    options.print_table(str(out), ["split", "documents", "tokens", "bytes", "shards"], rows)
