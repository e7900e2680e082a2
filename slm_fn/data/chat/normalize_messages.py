"""Messages as data sets write them, normalized: roles by their many names, contents as text, order.

The result alternates as the chat template requires: an optional system message, then user and
assistant in turn, the last message the assistant's. Contents lose white space at both ends and
nothing within.

Invariant: no word is changed; whatever is merged or cut is listed as a repair, and what cannot be
kept is rejected with a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import dropwhile
from typing import Any, NamedTuple

from slm_fn.data.chat.records import PreferencePair
from slm_fn.text.messages import Message, Role

Turn = tuple[Role, str]

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
}
TOOL_ROLES = frozenset(
    {
        "tool",
        "tools",
        "tool_call",
        "tool_calls",
        "tool_response",
        "function",
        "functions",
        "function_call",
        "function_calls",
        "function_response",
        "observation",
        "ipython",
    }
)

# The reasons below are keys in the journal and the metadata of prepared sources: file format.
UNKNOWN_LAYOUT = "not of this layout"
KEPT_PREFIX = "kept, but "
"""The beginning of a repair's name; any other reason is one for which a row is dropped."""
MERGED_TURNS = f"{KEPT_PREFIX}turns of one role in a row were joined"
LEADING_REPLY_CUT = f"{KEPT_PREFIX}what the assistant said before the first user was cut"
TRAILING_PROMPT_CUT = f"{KEPT_PREFIX}a user's turn without a reply was cut"
EMPTY_SYSTEM_CUT = f"{KEPT_PREFIX}an empty system message was left out"
TOOL_TURN = "a tool's turn"


class RejectedRowError(ValueError):
    """Raised for a row that cannot be converted; the message is the reason it is counted under."""


class NormalizedMessages(NamedTuple):
    """Messages in alternating roles, and the repairs that were needed."""

    messages: tuple[Message, ...]
    repairs: tuple[str, ...] = ()


def normalize(turns: Iterable[tuple[Any, Any]]) -> NormalizedMessages:
    """Return turns of (role, content) as messages that end with a reply.

    Raises:
        RejectedRowError: a tool's turn, an unknown role, content that is not text, an empty turn, a
            system message after the first turn, or no reply at all.

    Example:
        >>> turns = [("human", " Hi"), ("gpt", "Hello."), ("gpt", "How are you?")]
        >>> turns.append(("human", "Well."))
        >>> normalized = normalize(turns)
        >>> [message.content for message in normalized.messages]
        ['Hi', 'Hello.\\n\\nHow are you?']
        >>> len(normalized.repairs)
        2
    """
    parsed = [(parse_role(role), parse_content(content)) for role, content in turns]
    has_system = bool(parsed) and parsed[0][0] == "system"
    system = parsed[0][1] if has_system else None
    dialogue = parsed[1:] if has_system else parsed
    if any(role == "system" for role, _ in dialogue):
        raise RejectedRowError("a system message behind the first turn")
    if not all(content for _, content in dialogue):
        raise RejectedRowError("an empty turn")

    merged = list(_merge_turns(dialogue))
    from_user = list(dropwhile(_is_assistant, merged))
    ends_with_reply = not from_user or _is_assistant(from_user[-1])
    kept = from_user if ends_with_reply else from_user[:-1]
    if not kept:
        raise RejectedRowError("no reply of the assistant's to a user")

    repairs = {
        EMPTY_SYSTEM_CUT: system == "",
        MERGED_TURNS: len(merged) < len(dialogue),
        LEADING_REPLY_CUT: len(from_user) < len(merged),
        TRAILING_PROMPT_CUT: len(kept) < len(from_user),
    }
    messages = [Message(role, content) for role, content in kept]
    if system:
        messages.insert(0, Message("system", system))
    made = tuple(repair for repair, is_made in repairs.items() if is_made)
    return NormalizedMessages(tuple(messages), made)


def split_pair(chosen: Sequence[Message], rejected: Sequence[Message]) -> PreferencePair:
    """Return two conversations as the prompt they share and the continuation of each.

    Raises:
        RejectedRowError: the conversations are equal, or they do not first differ in a reply.
    """
    if chosen == rejected:
        raise RejectedRowError("chosen equals rejected")
    num_shared = 0
    shorter = min(len(chosen), len(rejected))
    while num_shared < shorter and chosen[num_shared] == rejected[num_shared]:
        num_shared += 1
    is_prefix = num_shared == shorter
    if num_shared == 0 or is_prefix or chosen[num_shared].role != "assistant":
        raise RejectedRowError("chosen and rejected do not answer the same prompt")
    return PreferencePair(
        tuple(chosen[:num_shared]), tuple(chosen[num_shared:]), tuple(rejected[num_shared:])
    )


def parse_role(name: Any) -> Role:
    """Return the role that a data set's name for one means.

    Raises:
        RejectedRowError: a tool's role, or an unknown one.

    Example:
        >>> parse_role("Human"), parse_role("gpt")
        ('user', 'assistant')
    """
    folded = name.strip().casefold() if isinstance(name, str) else ""
    if folded in TOOL_ROLES:
        raise RejectedRowError(TOOL_TURN)
    if folded not in ROLES:
        raise RejectedRowError("an unknown role")
    return ROLES[folded]


def parse_content(content: Any) -> str:
    """Return a message's content as text without white space at its ends.

    Args:
        content: a string, or a list of the text parts of OpenAI's messages.

    Raises:
        RejectedRowError: content other than text, such as an image, or half a surrogate pair.
    """
    text = _join_text_parts(content) if _is_text_parts(content) else content
    if not isinstance(text, str):
        raise RejectedRowError("contents that are no text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RejectedRowError("half a surrogate pair") from None
    return text.strip()


def _is_text_parts(content: Any) -> bool:
    if not isinstance(content, list):
        return False
    return all(isinstance(part, Mapping) and part.get("type") == "text" for part in content)


def _join_text_parts(parts: list[Mapping[str, Any]]) -> str | None:
    texts = [part.get("text") for part in parts]
    if not all(isinstance(text, str) for text in texts):
        return None
    return "".join(map(str, texts))


def _is_assistant(turn: Turn) -> bool:
    return turn[0] == "assistant"


def _merge_turns(turns: Iterable[Turn]) -> Iterator[Turn]:
    """Merge consecutive turns of one role, with an empty line between their contents."""
    merged: Turn | None = None
    for role, content in turns:
        if merged is None:
            merged = (role, content)
        elif merged[0] == role:
            merged = (role, f"{merged[1]}\n\n{content}")
        else:
            yield merged
            merged = (role, content)
    if merged is not None:
        yield merged
