"""`slm tokenizer`: train, inspect, encode, decode, export.

Invariant: `encode | decode` gives back the bytes it was fed, whatever they are, control tokens left out where allowed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from slm_fn.cli import options, train_tokenizer

if TYPE_CHECKING:
    from slm_fn.text.tokenizer import Tokenizer

FILE = click.Path(path_type=Path)
BAR = 40


@click.group("tokenizer")
def command() -> None:
    """Train, inspect, use and export a tokenizer.

    \b
    Example:
        slm tokenizer train texts/ --out tokenizer.json
        slm tokenizer inspect tokenizer.json --text "To be, or not to be"
    """


command.add_command(train_tokenizer.command)


def _load(file: Path) -> Tokenizer:
    """A tokenizer's file as it is; only to look into a folder takes more (seconds, for torch)."""
    from slm_fn.text.tokenizer import Tokenizer

    if not file.is_dir():
        return Tokenizer.load(file)
    from slm_fn.pipeline.export import find

    return find(file).tokenizer


@command.command("inspect")
@click.argument("file", type=FILE)
@click.option("--text", help="Text to show token by token.")
@click.option("--file", "source", type=FILE, help="Text file or corpus to measure.")
@click.option("--plot", type=FILE, metavar="FILE.png|svg", help="Draw token lengths, frequencies and compression too.")
@options.as_json
def inspect(file: Path, text: str | None, source: Path | None, plot: Path | None, as_json: bool) -> None:
    """What the tokenizer of FILE (tokenizer.json, pack or model) is made of, and what it makes of a text.

    \b
    Example:
        slm tokenizer inspect tokenizer.json --text "To be, or not to be"
        slm tokenizer inspect tokenizer.json --file corpus/ --plot tokens.png
    """
    from slm_fn.data.sources import Document
    from slm_fn.pipeline import inspect_tokenizer as inspects
    from slm_fn.pipeline import plot as plots

    if plot is not None:
        plots.check(plot)
    tokenizer = _load(file)
    found = inspects.describe(tokenizer)
    documents = (
        [Document("--text", text)] if text is not None else inspects.texts(source, options.note) if source else None
    )
    measured = None if documents is None else inspects.measure(tokenizer, documents)
    if measured is not None:
        found |= inspects.summary(tokenizer, measured)
    if plot is not None:
        plots.save(inspects.panels(found, measured), plot)
        found["plot"] = str(plot)
    if as_json:
        options.print_json(found)
        return
    sizes = found.pop("token_lengths")
    options.print_table(str(file), ["", ""], [[name.replace("_", " "), _cell(value)] for name, value in found.items()])
    click.echo("\ntokens by length in bytes")
    most = max(sizes.values())
    for size, count in sizes.items():
        click.echo(f"{size:>6}  {'#' * -(-BAR * count // most)} {count:,}")
    if text is not None:
        ids = tokenizer.encode(text)
        click.echo("\n" + "  ".join(f"{i}:{inspects.spelt(tokenizer, i)}" for i in ids))


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{key}:{number}" for key, number in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "  ".join(value) if isinstance(value, list) else f"{value:,}" if isinstance(value, int) else str(value)


@command.command("encode")
@click.argument("file", type=FILE)
@click.option(
    "--allowed-special",
    type=click.Choice(["none", "all", "raise"]),
    default="none",
    show_default=True,
    help="Whether the text may spell control tokens: it never does, it does, or that is an error.",
)
def encode(file: Path, allowed_special: Literal["none", "all", "raise"]) -> None:
    """Text on standard input to ids on standard output.

    \b
    Example:
        echo hello | slm tokenizer encode tokenizer.json
    """
    tokenizer, data = _load(file), sys.stdin.buffer.read()
    if allowed_special == "none":
        ids = tokenizer.encode_bytes(data)
    else:
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"standard input is not UTF-8 at byte {error.start}; only --allowed-special none takes any bytes"
            ) from None
        ids = tokenizer.encode(text, allowed_special)
    click.echo(" ".join(str(i) for i in ids))


@command.command("decode")
@click.argument("file", type=FILE)
def decode(file: Path) -> None:
    """Ids on standard input to text on standard output.

    \b
    Example:
        echo hello | slm tokenizer encode tokenizer.json | slm tokenizer decode tokenizer.json
    """
    tokenizer = _load(file)
    words = sys.stdin.read().split()
    wrong = next((w for w in words if not (w.isascii() and w.isdigit()) or int(w) >= tokenizer.vocab_size), None)
    if wrong is not None:
        raise ValueError(f"{wrong!r} is no token id; ids are 0 to {tokenizer.vocab_size - 1}")
    sys.stdout.buffer.write(tokenizer.decode_bytes(int(w) for w in words))


@command.command("export")
@click.argument("file", type=FILE)
@click.option("--to", required=True, type=click.Choice(["tiktoken", "hf"]), help="The program that is to read it.")
@click.option("--out", required=True, type=FILE, help="Folder to write.")
@options.as_json
def export(file: Path, to: Literal["tiktoken", "hf"], out: Path, as_json: bool) -> None:
    """Write the tokenizer of FILE (tokenizer.json, pack or model) for another program, with the same ids.

    What is written is read back and compared first; a tokenizer that has no exact form there is refused.

    \b
    Example:
        slm tokenizer export tokenizer.json --to hf --out exported
    """
    from slm_fn.pipeline.export import export_tokenizer

    made = export_tokenizer(file, to, out)
    if as_json:
        options.print_json({"out": str(made.out), "files": made.files, "how": made.how})
        return
    click.echo(f"{made.out}: {', '.join(made.files)}; read back, the same ids\n\n{made.how}")
