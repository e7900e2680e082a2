"""The click options that several commands share.

Invariant: importing this module imports no torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Command = Callable[..., None]
"""The function behind a command; click passes the options by name."""
Decorator = Callable[[Command], Command]
PATH = click.Path(path_type=Path)

device: Decorator = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda|mps",
    help="Device to compute on.",
)
as_json: Decorator = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as one JSON object."
)
quantize: Decorator = click.option(
    "--quantize",
    type=click.Choice(["int8", "int4"]),
    help="Quantize the weights on load: less memory, faster on CPUs.",
)
engine: Decorator = click.option(
    "--engine",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "native", "eager"]),
    help="Decoding engine; native is compiled C++, for CPUs.",
)
raw: Decorator = click.option(
    "--raw", is_flag=True, help="Use the raw trained weights instead of their running average."
)
overrides: Decorator = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH.TO.KEY=VALUE",
    help="Override a config value. May be repeated.",
)
out: Decorator = click.option("--out", required=True, type=PATH, help="Output folder.")
init: Decorator = click.option(
    "--init", required=True, type=PATH, help="Run or model folder with the initial weights."
)
resume: Decorator = click.option(
    "--resume",
    default="auto",
    show_default=True,
    metavar="auto|never|CHECKPOINT",
    help="Checkpoint to resume from; auto: the newest one in --out.",
)
column: Decorator = click.option(
    "--column",
    default="text",
    show_default=True,
    help="JSONL or parquet field that holds the text.",
)
strict: Decorator = click.option(
    "--strict", is_flag=True, help="Stop at the first input that cannot be read."
)
progress: Decorator = click.option(
    "--progress/--no-progress",
    "live",
    default=None,
    help="Progress bar or plain lines (default: a bar on a terminal).",
)


def paths(flag: str, help: str, parameter: str, required: bool = True) -> Decorator:
    """Returns an option for a file or folder that may be given several times.

    Args:
        flag: the option's name, such as `--data`.
        help: a sentence; "May be repeated." is appended.
        parameter: the command's parameter that receives the paths.
        required: whether the option must be given at least once.
    """
    return click.option(
        flag,
        parameter,
        multiple=True,
        required=required,
        type=PATH,
        help=f"{help} May be repeated.",
    )


def apply_all(*decorators: Decorator) -> Decorator:
    """Returns one decorator that applies several; `--help` lists the options in this order."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def collect(parameter: str, group: type[Any]) -> Decorator:
    """Returns a decorator that passes several options to the command as one object.

    It stands below the options it collects, next to the function.

    Args:
        parameter: the command's parameter that receives the object.
        group: a NamedTuple class whose field names are the options' parameter names.

    Example:
        >>> from typing import NamedTuple
        >>> class Address(NamedTuple):
        ...     host: str
        ...     port: int
        >>> @collect("address", Address)
        ... def connect(address, timeout):
        ...     print(address, timeout)
        >>> connect(host="localhost", port=80, timeout=1.5)
        Address(host='localhost', port=80) 1.5
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def call(**values: Any) -> None:
            fields = {name: values.pop(name) for name in group._fields}
            command(**values, **{parameter: group(**fields)})

        return call

    return decorate
