"""`slm data`: pack text, inspect packs and chat data.

Invariant: what inspect colours as trained is the mask that training uses.
"""

from __future__ import annotations

from pathlib import Path

import click

from slm_fn.cli import options

FOLDER = click.Path(path_type=Path)


@click.group("data")
def command() -> None:
    """Pack text, inspect packs and chat data."""


@command.command("pack")
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
def pack(
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


@command.command("inspect")
@click.argument("path", type=FOLDER)
@click.option("--num", default=3, show_default=True, help="Samples to show.")
@click.option("--tokenizer", "tokenizer_file", type=FOLDER, help="tokenizer.json, for chat data.")
@options.as_json
def inspect(path: Path, num: int, tokenizer_file: Path | None, as_json: bool) -> None:
    """Counts, checksums and samples of a pack; or chat JSONL token by token: trained green, ignored grey.

    \b
    Example:
        slm data inspect demo/packed
        slm data inspect demo/data/chat.jsonl --tokenizer demo/tokenizer.json
    """
    from slm_fn.pipeline import inspect as inspects

    if path.is_dir():
        found = inspects.pack(path, num)
        if as_json:
            options.print_json(found)
            return
        options.print_table(str(path), ["", ""], list(found["figures"].items()))
        for sample in found["samples"]:
            click.echo(f"\n--- {sample['split']} window {sample['window']}\n{sample['text']}")
        return
    if tokenizer_file is None:
        raise ValueError(f"{path}: chat data is shown token by token; name a tokenizer with --tokenizer")
    rows = inspects.chat(path, tokenizer_file, num)
    if as_json:
        options.print_json(rows)
        return
    for row in rows:
        click.echo(
            "".join(click.style(t["text"], fg="green" if t["trained"] else "bright_black") for t in row["tokens"])
        )
        click.echo(f"    {row['trained']} of {len(row['tokens'])} tokens trained\n")
