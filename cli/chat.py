"""`slm chat`: talk to a model in the terminal.

Invariant: commands begin with a slash; everything else is said to the model as it was typed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slm_fn.cli import options

if TYPE_CHECKING:
    from slm_fn.infer.stream import Piece
    from slm_fn.pipeline.model import Model
    from slm_fn.text.chat import Message

HELP = "/reset forgets the conversation, /system TEXT sets how the model should be, /save FILE writes it, /exit ends"
ROOM = 64


@click.command("chat")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--system", help="How the model should be.")
@options.sampling
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True, help="Longest reply.")
@click.option("--seed", default=0, show_default=True, help="Of the whole conversation.")
@click.option("--raw", is_flag=True, help="The weights as trained, not their running average.")
@options.quantize
@options.engine
@options.device
def command(
    model: Path,
    system: str | None,
    max_tokens: int,
    seed: int,
    raw: bool,
    device: str,
    quantize: str | None,
    engine: str,
    **sampling: Any,
) -> None:
    """Talk to MODEL in the terminal: /reset /system /save /exit.

    \b
    Example:
        slm chat demo/dpo
    """
    from slm_fn.pipeline import talk
    from slm_fn.pipeline.model import load
    from slm_fn.text.chat import Message

    loaded = load(model, device, raw, quantize=quantize, decode=engine)
    config, constraint = options.sampled(loaded, sampling)
    write = partial(talk.write, loaded, config=config, max_tokens=max_tokens, constraint=constraint)
    messages = [Message("system", system)] if system else []
    click.echo(HELP)
    while True:
        try:
            line = click.prompt(
                click.style("you", bold=True), prompt_suffix=" ", default="", show_default=False
            ).strip()
        except click.exceptions.Abort:
            click.echo()
            return
        if line.startswith("/"):
            done = _obey(line, messages)
            if done is None:
                return
            messages = done
        elif line:
            messages = _say(loaded, [*messages, Message("user", line)], partial(write, seed=seed + len(messages)))


def _say(model: Model, messages: list[Message], write: Callable[..., Iterator[Piece]]) -> list[Message]:
    """Stream a reply and return the conversation with it; what failed is said and forgotten."""
    from slm_fn.pipeline import talk
    from slm_fn.text.chat import Message

    fitted, dropped = talk.fit(model, messages, ROOM)
    if dropped:
        options.note(f"(the context is full: {dropped} oldest turns dropped)")
    said = ""
    click.echo(click.style("model ", bold=True), nl=False)
    try:
        for piece in write(talk.chat_ids(model, fitted), shared=talk.shared(model, fitted)):
            said += piece.text
            click.echo(options.printable(piece.text), nl=False)
    except ValueError as error:
        click.echo()
        options.note(str(error))
        return messages[:-1]
    except KeyboardInterrupt:
        click.echo(" (stopped)", nl=False)
    click.echo()
    return [*fitted, Message("assistant", said)]


def _obey(line: str, messages: list[Message]) -> list[Message] | None:
    """Carry out a slash command; None ends the chat."""
    from slm_fn.text.chat import Message

    word, _, rest = line.partition(" ")
    match word:
        case "/exit" | "/quit":
            return None
        case "/reset":
            options.note("(forgotten)")
            return [m for m in messages if m.role == "system"]
        case "/system":
            options.note("(a new conversation with this system message)" if rest else "(no system message)")
            return [Message("system", rest)] if rest else []
        case "/save":
            _save(rest or "chat.jsonl", messages)
        case _:
            options.note(HELP)
    return messages


def _save(path: str, messages: list[Message]) -> None:
    import msgspec

    from slm_fn.core import files

    files.write(path, msgspec.json.encode({"messages": messages}) + b"\n")
    options.note(f"(saved to {path}, as chat data)")
