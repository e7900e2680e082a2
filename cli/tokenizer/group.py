"""`slm tokenizer`: train, inspect, encode, decode, export.

Invariant: `encode | decode` returns the input bytes, whatever they are, except for special tokens
where they are allowed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from slm_fn.cli import options, output
from slm_fn.cli.tokenizer import train

if TYPE_CHECKING:
    from slm_fn.data.io.documents import Document
    from slm_fn.text.tokenizer import Tokenizer

BAR_WIDTH = 40


@click.group("tokenizer")
def command() -> None:
    """Train, inspect, use and export a tokenizer.

    \b
    Example:
        slm tokenizer train texts/ --out tokenizer.json
        slm tokenizer inspect tokenizer.json --text "To be, or not to be"
    """


command.add_command(train.command)


def _load(path: Path) -> Tokenizer:
    """Load a tokenizer from its file, or from a pack or model folder.

    Only a folder needs torch, whose import takes seconds.
    """
    from slm_fn.text.tokenizer import Tokenizer

    if not path.is_dir():
        return Tokenizer.load(path)
    from slm_fn.pipeline.tokenizer_source import load_tokenizer

    return load_tokenizer(path).tokenizer


@command.command("inspect")
@click.argument("file", type=options.PATH)
@click.option("--text", help="Text to show token by token.")
@click.option("--file", "source", type=options.PATH, help="Text file or corpus to measure on.")
@click.option(
    "--plot",
    type=options.PATH,
    metavar="FILE.png|svg",
    help="Plot token lengths, frequencies and compression into this file.",
)
@options.as_json
def inspect(
    file: Path, text: str | None, source: Path | None, plot: Path | None, as_json: bool
) -> None:
    """Describe the tokenizer of FILE (tokenizer.json, pack or model), and how it encodes a text.

    \b
    Example:
        slm tokenizer inspect tokenizer.json --text "To be, or not to be"
        slm tokenizer inspect tokenizer.json --file corpus/ --plot tokens.png
    """
    from slm_fn.pipeline.reports import inspect_tokenizer
    from slm_fn.pipeline.reports import text_plots as plots

    if plot is not None:
        plots.check_path(plot)
    tokenizer = _load(file)
    figures = inspect_tokenizer.describe(tokenizer)
    documents = _documents(text, source)
    measured = None
    if documents is not None:
        measured = inspect_tokenizer.measure(tokenizer, documents)
        figures |= inspect_tokenizer.summarize(tokenizer, measured)
    if plot is not None:
        plots.save(inspect_tokenizer.make_panels(figures, measured), plot)
        figures["plot"] = str(plot)
    if as_json:
        output.print_json(figures)
        return
    _print_figures(str(file), figures)
    if text is not None:
        _print_tokens(tokenizer, text)


def _documents(text: str | None, source: Path | None) -> Iterable[Document] | None:
    """Returns the texts to measure the tokenizer on, if any."""
    from slm_fn.data.io.documents import Document
    from slm_fn.pipeline.reports import inspect_tokenizer

    if text is not None:
        return [Document("--text", text)]
    if source:
        return inspect_tokenizer.read_texts(source, output.note)
    return None


def _print_figures(title: str, figures: dict[str, Any]) -> None:
    counts_by_length = figures.pop("token_lengths")
    rows = [[name.replace("_", " "), _format(value)] for name, value in figures.items()]
    output.print_table(title, ["", ""], rows)
    click.echo("\ntokens by length in bytes")
    max_count = max(counts_by_length.values())
    for length, count in counts_by_length.items():
        bar = "#" * -(-BAR_WIDTH * count // max_count)
        click.echo(f"{length:>6}  {bar} {count:,}")


def _print_tokens(tokenizer: Tokenizer, text: str) -> None:
    from slm_fn.pipeline.reports import inspect_tokenizer

    tokens = [
        f"{id}:{inspect_tokenizer.format_token(tokenizer, id)}" for id in tokenizer.encode(text)
    ]
    click.echo("\n" + "  ".join(tokens))


def _format(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{key}:{number}" for key, number in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "  ".join(value)
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


@command.command("encode")
@click.argument("file", type=options.PATH)
@click.option(
    "--allowed-special",
    type=click.Choice(["none", "all", "raise"]),
    default="none",
    show_default=True,
    help="Special tokens in the text: none encodes them as plain text, all as special tokens, "
    "raise reports an error.",
)
def encode(file: Path, allowed_special: Literal["none", "all", "raise"]) -> None:
    """Encode text from standard input to token ids on standard output.

    \b
    Example:
        echo hello | slm tokenizer encode tokenizer.json
    """
    tokenizer = _load(file)
    data = sys.stdin.buffer.read()
    if allowed_special == "none":
        ids = tokenizer.encode_bytes(data)
    else:
        ids = tokenizer.encode(_decode_utf8(data), allowed_special)
    click.echo(" ".join(map(str, ids)))


def _decode_utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"standard input is not UTF-8 at byte {error.start}; "
            "only --allowed-special none takes any bytes"
        ) from None


@command.command("decode")
@click.argument("file", type=options.PATH)
def decode(file: Path) -> None:
    """Decode token ids from standard input to text on standard output.

    \b
    Example:
        echo hello | slm tokenizer encode tokenizer.json | slm tokenizer decode tokenizer.json
    """
    tokenizer = _load(file)
    ids = [_parse_id(word, tokenizer.vocab_size) for word in sys.stdin.read().split()]
    sys.stdout.buffer.write(tokenizer.decode_bytes(ids))


def _parse_id(word: str, vocab_size: int) -> int:
    is_number = word.isascii() and word.isdigit()
    if not is_number or int(word) >= vocab_size:
        raise ValueError(f"{word!r} is not a token id; ids are 0 to {vocab_size - 1}")
    return int(word)


@command.command("export")
@click.argument("file", type=options.PATH)
@click.option(
    "--to",
    required=True,
    type=click.Choice(["tiktoken", "hf"]),
    help="Format to write: tiktoken's, or that of Hugging Face.",
)
@click.option("--out", required=True, type=options.PATH, help="Output folder.")
@options.as_json
def export(file: Path, to: Literal["tiktoken", "hf"], out: Path, as_json: bool) -> None:
    """Export the tokenizer of FILE (tokenizer.json, pack or model) with the same token ids.

    The files are read back and compared first; a tokenizer that the format cannot represent exactly
    is refused.

    \b
    Example:
        slm tokenizer export tokenizer.json --to hf --out exported
    """
    from slm_fn.pipeline.stages.export_tokenizer import export_tokenizer

    exported = export_tokenizer(file, to, out)
    if as_json:
        output.print_json({"out": str(exported.out), "files": exported.files, "how": exported.how})
        return
    names = ", ".join(exported.files)
    click.echo(f"{exported.out}: {names}; verified to give the same ids\n\n{exported.how}")
