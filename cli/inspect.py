"""`slm data inspect`: look into packs and chat data.

Invariant: what is coloured as trained is the mask that training uses.
"""

from __future__ import annotations

from pathlib import Path

import click

from slm_fn.cli import options

FOLDER = click.Path(path_type=Path)


@click.command("inspect")
@click.argument("path", type=FOLDER)
@click.option("--num", default=3, show_default=True, help="Samples to show.")
@click.option("--tokenizer", "tokenizer_file", type=FOLDER, help="tokenizer.json, for chat data.")
@options.as_json
def command(path: Path, num: int, tokenizer_file: Path | None, as_json: bool) -> None:
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
