"""`slm keys`: API keys of the server: add, list, remove.

Invariant: a key is printed once, when it is generated; the file holds its hash.
"""

from __future__ import annotations

from pathlib import Path

import click

from slm_fn.cli import options, output

file_argument = click.argument("file", type=options.PATH)


@click.group("keys")
def command() -> None:
    """Manage API keys for `slm serve --api-key-file FILE`.

    \b
    Example:
        slm keys add keys.txt --name ada
    """


@command.command("add")
@file_argument
@click.option(
    "--name",
    default="default",
    show_default=True,
    help="Name of the key in logs; rate limits are per name.",
)
def add(file: Path, name: str) -> None:
    """Generate a key, print it once, and add its hash to FILE.

    \b
    Example:
        slm keys add keys.txt --name ada
    """
    from slm_fn.serve import api_keys

    existing = api_keys.read(file) if file.exists() and file.stat().st_size else ()
    if any(stored.name == name for stored in existing):
        raise ValueError(
            f"{file}: a key named {name!r} exists; choose another --name or remove it first"
        )
    key, stored = api_keys.generate(name)
    api_keys.write(file, [*existing, stored])
    click.echo(key)
    output.note("save it now: the file holds only its hash")


@command.command("list")
@file_argument
def show(file: Path) -> None:
    """List the names in FILE, one per line.

    \b
    Example:
        slm keys list keys.txt
    """
    from slm_fn.serve import api_keys

    for stored in api_keys.read(file):
        click.echo(stored.name)


@command.command("remove")
@file_argument
@click.argument("name")
def remove(file: Path, name: str) -> None:
    """Remove a key from FILE; a running server accepts it until it is restarted.

    \b
    Example:
        slm keys remove keys.txt ada
    """
    from slm_fn.serve import api_keys

    existing = api_keys.read(file)
    names = [stored.name for stored in existing]
    if name not in names:
        raise ValueError(f"{file}: no key named {name!r}; it has {', '.join(names)}")
    api_keys.write(file, [stored for stored in existing if stored.name != name])
