"""Turns as data sets write them, made into messages: roles by their many names, contents as text, order as it must be.

What comes out takes turns as the chat template wants it: an optional system message, then user and assistant, the last
word the assistant's. Contents lose white space at both ends and nothing within.

Invariant: no word is changed; whatever is joined or trimmed is told, and what cannot be kept is refused with a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import dropwhile
from typing import Any, Literal, NamedTuple

from slm_fn.data.sources import Message, Preference

Role = Literal["system", "user", "assistant"]
ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "bot", "model", "ai"), "assistant"),
}
TOOLS = frozenset(
    f"{kind}{part}" for kind in ("tool", "function") for part in ("", "s", "_call", "_calls", "_response")
) | {"observation", "ipython"}
FOREIGN = "not of this layout"
KEPT = "kept, but "
"""What begins the name of a repair; every other reason is one for which a row is dropped."""
JOINED = f"{KEPT}turns of one role in a row were joined"
HEADLESS = f"{KEPT}what the assistant said before the first user was cut"
UNANSWERED = f"{KEPT}a user's turn without a reply was cut"
NO_SYSTEM = f"{KEPT}an empty system message was left out"


class Refused(ValueError):
    """A row that cannot be converted; the message is the reason it is counted under."""


class Tidied(NamedTuple):
    """Messages that take turns, and the repairs it took."""

    messages: tuple[Message, ...]
    repairs: tuple[str, ...] = ()


def tidy(turns: Iterable[tuple[Any, Any]]) -> Tidied:
    """Turns of (role, content) as messages that end with a reply.

    Raises:
        Refused: a tool's turn, an unknown role, contents that are no text, an empty turn, a system message behind the
            first turn, or no reply at all.

    Example:
        >>> tidied = tidy([("human", " Hi"), ("gpt", "Hello."), ("gpt", "How are you?"), ("human", "Well.")])
        >>> [message.content for message in tidied.messages]
        ['Hi', 'Hello.\\n\\nHow are you?']
        >>> len(tidied.repairs)
        2
    """
    said = [(role_of(role), text_of(content)) for role, content in turns]
    system = [text for role, text in said[:1] if role == "system"]
    dialogue = said[len(system) :]
    if any(role == "system" for role, _ in dialogue):
        raise Refused("a system message behind the first turn")
    if not all(text for _, text in dialogue):
        raise Refused("an empty turn")
    joined = list(_joined(dialogue))
    headed = list(dropwhile(lambda turn: turn[0] == "assistant", joined))
    kept = headed if not headed or headed[-1][0] == "assistant" else headed[:-1]
    if not kept:
        raise Refused("no reply of the assistant's to a user")
    found = {
        NO_SYSTEM: system == [""],
        JOINED: len(joined) < len(dialogue),
        HEADLESS: len(headed) < len(joined),
        UNANSWERED: len(kept) < len(headed),
    }
    messages = [*(Message("system", text) for text in system if text), *(Message(*turn) for turn in kept)]
    return Tidied(tuple(messages), tuple(name for name, happened in found.items() if happened))


def part(chosen: Sequence[Message], rejected: Sequence[Message]) -> Preference:
    """Two conversations as what they share and how each goes on.

    Raises:
        Refused: they are the same, or what parts them is not a reply.
    """
    if chosen == rejected:
        raise Refused("chosen equals rejected")
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    if not shared or chosen[shared].role != "assistant":
        raise Refused("chosen and rejected do not answer the same prompt")
    return Preference(tuple(chosen[:shared]), tuple(chosen[shared:]), tuple(rejected[shared:]))


def role_of(name: Any) -> Role:
    """The role that a data set's name for one means.

    Raises:
        Refused: a tool's, or none that is known.
    """
    folded = name.strip().casefold() if isinstance(name, str) else ""
    if folded in TOOLS:
        raise Refused("a tool's turn")
    if folded not in ROLES:
        raise Refused("an unknown role")
    return ROLES[folded]


def text_of(content: Any) -> str:
    """Contents as text without white space at its ends: a string, or the parts that OpenAI's messages have.

    Raises:
        Refused: something else than text, say a picture, or half a surrogate pair.
    """
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        texts = [part.get("text") for part in content]
        content = "".join(texts) if all(isinstance(text, str) for text in texts) else None
    if not isinstance(content, str):
        raise Refused("contents that are no text")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise Refused("half a surrogate pair") from None
    return content.strip()


def _joined(turns: Iterable[tuple[Role, str]]) -> Iterator[tuple[Role, str]]:
    """Neighbours of one role as one turn, an empty line between what they say."""
    held: tuple[Role, str] | None = None
    for role, text in turns:
        if held is None or held[0] != role:
            if held is not None:
                yield held
            held = role, text
        else:
            held = role, f"{held[1]}\n\n{text}"
    if held is not None:
        yield held
