"""`slm tokenizer`: train, inspect, encode, decode.

Invariant: `encode | decode` gives back the bytes it was fed, for any UTF-8 text.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from slm_fn.cli import options, train_tokenizer

FILE = click.Path(path_type=Path)


@click.group("tokenizer")
def command() -> None:
    """Train, inspect and use a tokenizer."""


command.add_command(train_tokenizer.command)


@command.command("inspect")
@click.argument("file", type=FILE)
@click.option("--text", help="Text to show token by token.")
@click.option("--file", "source", type=FILE, help="Text file to measure.")
@options.as_json
def inspect(file: Path, text: str | None, source: Path | None, as_json: bool) -> None:
    """Vocabulary, control tokens, bytes per token, and whether a text comes back unchanged.

    \b
    Example:
        slm tokenizer inspect tokenizer.json --text "To be, or not to be"
    """
    from slm_fn.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(file)
    found: dict[str, object] = {
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
        "specials": tokenizer.specials,
    }
    if text is None and source is not None:
        text = source.read_bytes().decode()
    if text is not None:
        ids = tokenizer.encode(text)
        size = len(text.encode())
        found |= {"tokens": len(ids), "bytes": size, "bytes_per_token": round(size / max(1, len(ids)), 3)}
        found["round_trip"] = tokenizer.decode(ids) == text
    if as_json:
        options.print_json(found)
        return
    options.print_table(str(file), ["", ""], list(found.items()))
    if text is not None and source is None:
        click.echo("  ".join(f"{i}:{tokenizer.token_bytes(i)!r}" for i in ids))


@command.command("encode")
@click.argument("file", type=FILE)
def encode(file: Path) -> None:
    """Text on standard input to ids on standard output.

    \b
    Example:
        echo hello | slm tokenizer encode tokenizer.json
    """
    from slm_fn.text.tokenizer import Tokenizer

    text = sys.stdin.buffer.read().decode()
    click.echo(" ".join(str(i) for i in Tokenizer.load(file).encode(text)))


@command.command("decode")
@click.argument("file", type=FILE)
def decode(file: Path) -> None:
    """Ids on standard input to text on standard output.

    \b
    Example:
        echo hello | slm tokenizer encode tokenizer.json | slm tokenizer decode tokenizer.json
    """
    from slm_fn.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(file)
    words = sys.stdin.read().split()
    wrong = next((w for w in words if not w.isdigit() or int(w) >= tokenizer.vocab_size), None)
    if wrong is not None:
        raise ValueError(f"{wrong!r} is no token id; ids are 0 to {tokenizer.vocab_size - 1}")
    sys.stdout.buffer.write(b"".join(tokenizer.token_bytes(int(w)) for w in words))
