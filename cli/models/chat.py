"""`slm chat`: chat with a model in the terminal.

Invariant: a line that begins with a slash is a command; every other line is sent to the model as
typed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from slm_fn.cli import options, output
from slm_fn.cli.models.loading import (
    LoadOptions,
    collect_load_options,
    load_model,
    load_options,
)
from slm_fn.cli.models.sampling import (
    SamplingOptions,
    collect_sampling_options,
    resolve_sampling,
    sampling_options,
)

if TYPE_CHECKING:
    from slm_fn.infer.constraints import Constraint
    from slm_fn.infer.sampling import SampleConfig
    from slm_fn.pipeline.model_folder import Model
    from slm_fn.text.messages import Message

HELP = (
    "/reset clears the conversation, /system TEXT sets the system message, "
    "/save FILE saves the conversation, /exit quits"
)
MIN_REPLY_TOKENS = 64
"""Tokens of the context that old turns are dropped for."""


class ChatSession(NamedTuple):
    """A loaded model and the settings of its replies."""

    model: Model
    config: SampleConfig
    constraint: Constraint | None
    max_tokens: int
    seed: int


@click.command("chat")
@click.argument("model", type=options.PATH)
@click.option("--system", help="System message.")
@sampling_options
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Maximum number of tokens of a reply.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the conversation.")
@load_options
@collect_sampling_options
@collect_load_options
def command(
    model: Path,
    system: str | None,
    sampling: SamplingOptions,
    max_tokens: int,
    seed: int,
    loading: LoadOptions,
) -> None:
    """Chat with MODEL in the terminal: /reset /system /save /exit.

    \b
    Example:
        slm chat demo/dpo
    """
    from slm_fn.text.messages import Message

    loaded = load_model(model, loading)
    config, constraint = resolve_sampling(loaded, sampling)
    session = ChatSession(loaded, config, constraint, max_tokens, seed)
    messages: list[Message] | None = [Message("system", system)] if system else []
    click.echo(HELP)
    while messages is not None:
        line = _read_line()
        if line is None:
            return
        if line.startswith("/"):
            messages = _run_command(line, messages)
        elif line:
            messages = _reply(session, [*messages, Message("user", line)])


def _read_line() -> str | None:
    """Returns the next line that the user types, or None at the end of the input."""
    prompt = click.style("you", bold=True)
    try:
        line: str = click.prompt(prompt, prompt_suffix=" ", default="", show_default=False)
    except click.exceptions.Abort:
        click.echo()
        return None
    return line.strip()


def _reply(session: ChatSession, messages: list[Message]) -> list[Message]:
    """Stream a reply and return the conversation with it.

    A message that cannot be answered is reported and removed from the conversation.
    """
    from slm_fn.pipeline.generation import generate
    from slm_fn.text.messages import Message

    fitted, num_dropped = generate.truncate_messages(session.model, messages, MIN_REPLY_TOKENS)
    if num_dropped:
        output.note(f"(the context is full: the {num_dropped} oldest turns are dropped)")
    reply = ""
    click.echo(click.style("model ", bold=True), nl=False)
    try:
        request = generate.make_request(
            session.model,
            generate.encode_chat(session.model, fitted),
            session.config,
            seed=session.seed + len(messages) - 1,
            max_tokens=session.max_tokens,
            constraint=session.constraint,
            num_shared=generate.num_system_tokens(session.model, fitted),
        )
        for delta in generate.stream_text(session.model, request):
            reply += delta.text
            click.echo(output.printable(delta.text), nl=False)
    except ValueError as error:
        click.echo()
        output.note(str(error))
        return messages[:-1]
    except KeyboardInterrupt:
        click.echo(" (stopped)", nl=False)
    click.echo()
    return [*fitted, Message("assistant", reply)]


def _run_command(line: str, messages: list[Message]) -> list[Message] | None:
    """Run a slash command and return the conversation after it; None ends the chat."""
    name, _, argument = line.partition(" ")
    match name:
        case "/exit" | "/quit":
            return None
        case "/reset":
            output.note("(conversation cleared)")
            return [message for message in messages if message.role == "system"]
        case "/system":
            return _start_conversation(argument)
        case "/save":
            _save(argument or "chat.jsonl", messages)
        case _:
            output.note(HELP)
    return messages


def _start_conversation(system: str) -> list[Message]:
    from slm_fn.text.messages import Message

    if not system:
        output.note("(new conversation without a system message)")
        return []
    output.note("(new conversation with this system message)")
    return [Message("system", system)]


def _save(path: str, messages: list[Message]) -> None:
    import msgspec

    from slm_fn.core import files

    files.write(path, msgspec.json.encode({"messages": messages}) + b"\n")
    output.note(f"(saved to {path} as chat data)")
