"""Chat records: conversations and preference pairs of messages, and the files they are read from.

Invariant: every record that is read has been checked; one that fails is an error that names its
file and line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from slm_fn.data.io import typed_rows
from slm_fn.text.messages import Message, Role


class Conversation(msgspec.Struct, frozen=True):
    """One line of chat data: the messages of a conversation in order."""

    messages: tuple[Message, ...]


class PreferencePair(msgspec.Struct, frozen=True):
    """One line of preference data: a chosen and a rejected continuation of one prompt."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]


CheckMessages = Callable[[Sequence[Message]], object]
"""Raises ValueError for messages that are not a valid conversation, as a chat template does."""


class _RawPair(msgspec.Struct):
    prompt: str | tuple[Message, ...]
    chosen: str | tuple[Message, ...]
    rejected: str | tuple[Message, ...]


def read_chat(
    paths: Iterable[Path | str], check: CheckMessages | None = None
) -> Iterator[Conversation]:
    """Yield the conversations of JSONL or parquet files.

    Each line is `{"messages": [{"role": ..., "content": ...}, ...]}`; other fields are ignored.

    Args:
        check: called with each conversation's messages; file and line are added to its ValueError.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a line that is not such an object, or no lines at all; names file and line.
    """
    for location, conversation in typed_rows.read_structs(paths, Conversation):
        if not conversation.messages:
            raise ValueError(f"{location}: a conversation needs at least one message")
        _check(check, conversation.messages, location)
        yield conversation


def read_pairs(
    paths: Iterable[Path | str], check: CheckMessages | None = None
) -> Iterator[PreferencePair]:
    """Yield the preference pairs of JSONL or parquet files.

    Each line has `prompt`, `chosen` and `rejected`, each a list of messages or a string. A string
    is one message: the user's for the prompt, the assistant's for the others.

    Args:
        check: called with prompt and chosen, then with prompt and rejected, as conversations.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a line that is not such an object, a reply that is not the assistant's, or no
            lines at all; names file and line.
    """
    for location, raw in typed_rows.read_structs(paths, _RawPair):
        pair = PreferencePair(
            _to_messages(raw.prompt, "user"),
            _to_messages(raw.chosen, "assistant"),
            _to_messages(raw.rejected, "assistant"),
        )
        if not pair.prompt:
            raise ValueError(f"{location}: the prompt is empty")
        for name, reply in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            if not reply or reply[-1].role != "assistant":
                raise ValueError(f"{location}: {name} must end with a message of the assistant")
            _check(check, (*pair.prompt, *reply), location)
        yield pair


def _to_messages(value: str | tuple[Message, ...], role: Role) -> tuple[Message, ...]:
    return (Message(role, value),) if isinstance(value, str) else value


def _check(check: CheckMessages | None, messages: Sequence[Message], location: str) -> None:
    """Check that messages can be encoded as UTF-8 and pass `check`."""
    try:
        for message in messages:
            message.content.encode()
        if check is not None:
            check(messages)
    except ValueError as error:
        raise ValueError(f"{location}: {error}") from None
