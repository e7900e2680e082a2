"""`slm data pack`: text files to packed shards.

Invariant: the options are those of `PackConfig`.
"""

from __future__ import annotations

from pathlib import Path

import click

from slm_fn.cli import options

FOLDER = click.Path(path_type=Path)


@click.command("pack")
@click.option("--tokenizer", "tokenizer_file", required=True, type=FOLDER, help="tokenizer.json")
@options.files("--in", "File or folder of .txt, .md or .jsonl.", letter="inputs")
@options.out
@click.option("--seq-len", default=256, show_default=True, help="Tokens a window predicts.")
@click.option("--shard-size", default=1 << 24, show_default=True, help="Tokens per shard file.")
@click.option(
    "--val-fraction", default=0.05, show_default=True, help="Share of documents held out, by a hash of the name."
)
@click.option("--val-name", "val_names", multiple=True, help="Hold this document out. May be repeated.")
@click.option("--workers", default=0, show_default=True, help="Worker processes; 0 encodes in this one.")
@options.as_json
def command(
    tokenizer_file: Path,
    inputs: tuple[Path, ...],
    out: Path,
    seq_len: int,
    shard_size: int,
    val_fraction: float,
    val_names: tuple[str, ...],
    workers: int,
    as_json: bool,
) -> None:
    """Encode files and folders of text into packed shards.

    \b
    Example:
        slm data pack --tokenizer tokenizer.json --in texts/ --out packed
    """
    import msgspec

    from slm_fn.data import sources
    from slm_fn.pipeline.pack import PackConfig, pack_documents
    from slm_fn.text.tokenizer import Tokenizer

    config = PackConfig(seq_len, shard_size, val_fraction, val_names, workers)
    info = pack_documents(config, Tokenizer.load(tokenizer_file), sources.read(inputs), out)
    if as_json:
        options.print_json(msgspec.to_builtins(info))
        return
    rows = [[n, s.documents, f"{s.tokens:,}", f"{s.num_bytes:,}", len(s.shards)] for n, s in info.splits.items()]
    options.print_table(str(out), ["split", "documents", "tokens", "bytes", "shards"], rows)
