"""`slm keys`: API keys of the server: add, list, remove.

Invariant: a key is printed once, when it is made; the file holds its hash.
"""

from __future__ import annotations

from pathlib import Path

import click

FILE = click.argument("file", type=click.Path(path_type=Path))


@click.group("keys")
def command() -> None:
    """API keys for `slm serve --api-key-file FILE`.

    \b
    Example:
        slm keys add keys.txt --name ada
    """


@command.command("add")
@FILE
@click.option("--name", default="default", show_default=True, help="Whose key it is; limits and logs go by it.")
def add(file: Path, name: str) -> None:
    """Make a key, print it once, and add its hash to FILE.

    \b
    Example:
        slm keys add keys.txt --name ada
    """
    from slm_fn.serve import keys

    there = keys.read(file) if file.exists() and file.stat().st_size else ()
    if any(stored.name == name for stored in there):
        raise ValueError(f"{file}: there is a key named {name!r}; take another --name or remove it first")
    key, stored = keys.make(name)
    keys.write(file, [*there, stored])
    click.echo(key)
    click.echo("keep it now: the file holds only its hash", err=True)


@command.command("list")
@FILE
def show(file: Path) -> None:
    """The names in FILE, one a line.

    \b
    Example:
        slm keys list keys.txt
    """
    from slm_fn.serve import keys

    for stored in keys.read(file):
        click.echo(stored.name)


@command.command("remove")
@FILE
@click.argument("name")
def remove(file: Path, name: str) -> None:
    """Take a key out of FILE; a server that runs keeps it until it is started again.

    \b
    Example:
        slm keys remove keys.txt ada
    """
    from slm_fn.serve import keys

    there = keys.read(file)
    if all(stored.name != name for stored in there):
        raise ValueError(f"{file}: no key named {name!r}; it has {', '.join(stored.name for stored in there)}")
    keys.write(file, [stored for stored in there if stored.name != name])
