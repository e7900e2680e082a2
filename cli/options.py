"""Options that several commands share, and how figures and tables are printed.

Invariant: figures go to standard output, progress and notes to standard error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

device = click.option(
    "--device", default="auto", show_default=True, metavar="auto|cpu|cuda|mps", help="Where to compute."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
quantize = click.option(
    "--quantize", type=click.Choice(["int8", "int4"]), help="Load the weights in so few bits: smaller, faster on CPUs."
)
engine = click.option(
    "--engine",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "native", "eager"]),
    help="Of decoding: native is compiled C++, for CPUs.",
)
overrides = click.option(
    "--set", "overrides", multiple=True, metavar="PATH.TO.KEY=VALUE", help="Override a value of the config."
)
out = click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
init = click.option("--init", required=True, type=click.Path(path_type=Path), help="Run or model folder to start from.")
resume = click.option(
    "--resume",
    default="auto",
    show_default=True,
    metavar="auto|never|CHECKPOINT",
    help="Go on from the newest checkpoint in --out.",
)
column = click.option(
    "--column", default="text", show_default=True, help="Field of JSONL or parquet that holds the text."
)
strict = click.option("--strict", is_flag=True, help="Stop at the first thing that cannot be read.")
progress = click.option(
    "--progress/--no-progress", "live", default=None, help="Live bar or plain lines (default: by terminal)."
)


def files(name: str, help: str, required: bool = True, letter: str = "paths") -> Callable[[Any], Any]:
    """An option that may be given several times, each a file or folder."""
    return click.option(
        name, letter, multiple=True, required=required, type=click.Path(path_type=Path), help=f"{help} May be repeated."
    )


def tuning(command: Callable[..., None]) -> Callable[..., None]:
    """The arguments that fine-tuning stages share, as decorators in the order that help shows them."""
    shared = (
        click.argument("config"),
        init,
        files("--data", "JSONL file or folder to train on.", letter="data"),
        files("--val", "JSONL file or folder to judge on.", required=False, letter="val"),
        click.option("--val-fraction", type=float, help="Hold out this share of the data, split by prompt."),
        out,
        resume,
        overrides,
        device,
        progress,
        as_json,
    )
    for option in reversed(shared):
        command = option(command)
    return command


def tune(stage: Callable[..., Any], section: str, told: dict[str, Any]) -> None:
    """Run a fine-tuning stage with the arguments of `tuning`, and report it."""
    from slm_fn import config as configs

    fraction, flags = told["val_fraction"], told["overrides"]
    extra = () if fraction is None else (f"{section}.val_fraction={fraction}",)
    done = stage(
        configs.load(told["config"], [*flags, *extra]),
        told["init"],
        told["data"],
        told["out"],
        told["val"],
        told["device"],
        told["resume"],
        told["live"],
        note=note,
    )
    report_run(done, told["as_json"])


def sampling(command: Callable[..., None]) -> Callable[..., None]:
    """How to choose tokens and which form a reply must have, as decorators in the order that help shows them."""
    shared = (
        click.option("--temperature", type=float, help="0 is greedy; lower is safer."),
        click.option("--top-k", type=int, help="Only the k likeliest; 0 is off."),
        click.option("--top-p", type=float, help="Only the likeliest that reach this probability together."),
        click.option("--min-p", type=float, help="Only tokens this many times as likely as the likeliest."),
        click.option("--typical-p", type=float, help="Only those that say about as much as is usual, up to this sum."),
        click.option("--repetition-penalty", type=float, help="Above 1 discourages what is in prompt or reply."),
        click.option("--frequency-penalty", type=float, help="Off a token's logit each time the reply has it."),
        click.option("--presence-penalty", type=float, help="Off a token's logit once the reply has it."),
        click.option("--logit-bias", multiple=True, metavar="ID=BIAS", help="Onto a token's logit. May be repeated."),
        click.option("--bad-word", multiple=True, metavar="TEXT", help="Never say this. May be repeated."),
        click.option("--json-schema", type=click.Path(path_type=Path), help="File: the reply is JSON of this schema."),
        click.option("--json-object", is_flag=True, help="The reply is a JSON object."),
        click.option("--regex", help="The reply is what this regular expression matches."),
        click.option("--choice", multiple=True, help="The reply is one of these. May be repeated."),
        click.option("--grammar", type=click.Path(path_type=Path), help="File: the reply is of this Lark grammar."),
    )
    for option in reversed(shared):
        command = option(command)
    return command


def sampled(model: Any, told: dict[str, Any]) -> tuple[Any, Any]:
    """The sampling config and the constraint (or None) that the arguments of `sampling` ask of a model."""
    from slm_fn.infer import sample
    from slm_fn.pipeline import talk

    given = {name: told[name] for name in _NUMBERS if told[name] is not None}
    if told["logit_bias"]:
        given["logit_bias"] = dict(map(_bias, told["logit_bias"]))
    if told["bad_word"]:
        given["bad_words"] = talk.bad_words(model, told["bad_word"])
    grammar = _grammar(told)
    config = sample.check(talk.sampling(model, given), model.config.vocab_size)
    return config, None if grammar is None else talk.constraint(model, grammar)


_NUMBERS = (
    *("temperature", "top_k", "top_p", "min_p", "typical_p"),
    *("repetition_penalty", "frequency_penalty", "presence_penalty"),
)


def _bias(text: str) -> tuple[int, float]:
    name, _, bias = text.partition("=")
    try:
        return int(name), float(bias)
    except ValueError:
        raise click.UsageError(f"--logit-bias takes ID=BIAS, such as 42=-100, got {text!r}") from None


def _grammar(told: dict[str, Any]) -> Any:
    from slm_fn.infer.constrain import Grammar

    found = [
        Grammar(kind, list(source) if kind == "choice" else _read(source) if isinstance(source, Path) else source)
        for kind in ("json_schema", "regex", "choice", "grammar")
        if (source := told[kind])
    ]
    found += [Grammar("json_object")] if told["json_object"] else []
    if len(found) > 1:
        raise click.UsageError("give one of --json-schema, --json-object, --regex, --choice, --grammar")
    return found[0] if found else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise click.UsageError(f"{path} is no UTF-8 text") from None


def note(text: str) -> None:
    """A line on standard error."""
    click.echo(text, err=True)


def printable(text: str) -> str:
    """Without control characters: neither a model nor a corpus must move the cursor."""
    return "".join(c for c in text if c in "\n\t" or c.isprintable())


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    import msgspec

    click.echo(msgspec.json.encode(value).decode())


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], spare: Sequence[str] = ()) -> None:
    """A table on standard output: as wide as it is in a pipe; on a narrow terminal cells are folded, never cut.

    Args:
        spare: columns that a terminal which is too narrow goes without, the first one first.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 10_000
    shown, gone = list(range(len(columns))), [columns.index(name) for name in spare]
    while True:
        table = Table(title=Text(title), title_justify="left")
        for i in shown:
            table.add_column(columns[i], overflow="fold")
        for row in rows:
            # Text, not str: in what data says, square brackets are no markup.
            table.add_row(*(Text("" if row[i] is None else str(row[i])) for i in shown))
        wanted = table.__rich_measure__(console, console.options.update(max_width=10_000)).maximum
        if not gone or wanted <= console.width:
            break
        shown.remove(gone.pop(0))
    console.print(table)


def report_run(done: Any, as_json: bool) -> None:
    """Where a finished run lies and what it reached; of several processes the first one tells."""
    if int(os.environ.get("RANK", "0")):
        return
    figures = {"step": done.progress.step, "tokens": done.progress.tokens, "seconds": round(done.progress.seconds, 1)}
    figures |= {name: round(value, 6) for name, value in done.metrics.items()}
    if as_json:
        print_json({"checkpoint": str(done.checkpoint), **figures})
    else:
        click.echo(f"{done.checkpoint}  " + "  ".join(f"{name} {value}" for name, value in figures.items()))
