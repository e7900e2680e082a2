"""Conversations and preference pairs from the layouts of public data sets.

The layouts are those of OpenAI and TRL, ShareGPT, UltraChat and OASST. Each is a function from rows
as they stream out of a file to `Conversation` or `PreferencePair`; `normalize_messages` normalizes
the messages, and what was repaired or dropped is counted by reason.

Invariant: every row (of OASST: every tree) is yielded, or counted once under a reason that does not
begin with `KEPT_PREFIX`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from slm_fn.data.chat import oasst
from slm_fn.data.chat.normalize_messages import (
    TOOL_TURN,
    UNKNOWN_LAYOUT,
    RejectedRowError,
    normalize,
    parse_content,
    parse_role,
    split_pair,
)
from slm_fn.data.chat.oasst import CountReason
from slm_fn.data.chat.records import Conversation, PreferencePair

Row = Mapping[str, Any]
RawTurn = tuple[Any, Any]
"""(role, content) as a data set writes them."""
Converter = Callable[[Iterable[Any], CountReason], Iterator[Conversation | PreferencePair]]
T = TypeVar("T")
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
"""How Anthropic's data begins each turn."""


def messages(rows: Iterable[Any], count_reason: CountReason) -> Iterator[Conversation]:
    """Convert OpenAI's and TRL's `messages` of role and content, as in ultrachat_200k.

    Example:
        >>> turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
        >>> for conversation in messages([{"messages": turns}, {}], print):
        ...     print(len(conversation.messages))
        2
        not of this layout
    """

    def convert(row: Row) -> tuple[Conversation, Sequence[str]]:
        return _to_conversation(_read_turns(_get_list(row, "messages")))

    return _convert_each(rows, count_reason, convert)


def sharegpt(rows: Iterable[Any], count_reason: CountReason) -> Iterator[Conversation]:
    """Convert ShareGPT's `conversations` of from and value, with an optional `system` column.

    Role and content are read as well.
    """

    def convert(row: Row) -> tuple[Conversation, Sequence[str]]:
        column = "conversations" if "conversations" in row else "conversation"
        turns = list(_read_turns(_get_list(row, column)))
        if row.get("system"):
            turns.insert(0, ("system", row["system"]))
        return _to_conversation(turns)

    return _convert_each(rows, count_reason, convert)


def ultrachat(rows: Iterable[Any], count_reason: CountReason) -> Iterator[Conversation]:
    """Convert UltraChat as first published: `data`, a list of strings, the first the user's."""

    def convert(row: Row) -> tuple[Conversation, Sequence[str]]:
        turns = []
        for i, text in enumerate(_get_list(row, "data")):
            turns.append((("user", "assistant")[i % 2], text))
        return _to_conversation(turns)

    return _convert_each(rows, count_reason, convert)


def prompt_completion(rows: Iterable[Any], count_reason: CountReason) -> Iterator[Conversation]:
    """Convert TRL's `prompt` and `completion`, strings or messages; drops a `label` of false."""

    def convert(row: Row) -> tuple[Conversation, Sequence[str]]:
        if row.get("label") is False:
            raise RejectedRowError("labelled as not wanted")
        prompt = _read_column(row, "prompt", "user")
        completion = _read_column(row, "completion", "assistant")
        return _to_conversation([*prompt, *completion])

    return _convert_each(rows, count_reason, convert)


def preference(rows: Iterable[Any], count_reason: CountReason) -> Iterator[PreferencePair]:
    """Convert TRL's `chosen` and `rejected`, with a `prompt` column or the prompt inside both.

    The columns hold strings or messages. Strings without a prompt are read if they are written with
    Anthropic's `Human:` and `Assistant:`. The prompt is what the two sides have in common; it ends
    with a turn of the user.

    Example:
        >>> row = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
        >>> pair = next(preference([row], print))
        >>> pair.prompt[0].role, pair.rejected[0].content
        ('user', 'What?')
    """

    def convert(row: Row) -> tuple[PreferencePair, Sequence[str]]:
        chosen = normalize(_read_side(row, "chosen"))
        rejected = normalize(_read_side(row, "rejected"))
        pair = split_pair(chosen.messages, rejected.messages)
        distinct_repairs = dict.fromkeys((*chosen.repairs, *rejected.repairs))
        return pair, tuple(distinct_repairs)

    return _convert_each(rows, count_reason, convert)


CHAT_LAYOUTS: dict[str, Converter] = {
    "messages": messages,
    "oasst": oasst.conversations,
    "ultrachat": ultrachat,
    "sharegpt": sharegpt,
    "prompt_completion": prompt_completion,
}
"""Layouts that yield `Conversation`, by the name in a config."""
PAIR_LAYOUTS: dict[str, Converter] = {
    "preference": preference,
    "oasst_pairs": oasst.preferences,
}
"""Layouts that yield `PreferencePair`, by the name in a config."""
LAYOUTS = CHAT_LAYOUTS | PAIR_LAYOUTS
OASST_LAYOUTS = ("oasst", "oasst_pairs")
"""Layouts whose rows have a language."""


def make_converter(layout: str, languages: Collection[str] = ()) -> Converter:
    """Return the converter of a layout.

    Args:
        layout: one of `LAYOUTS`.
        languages: the languages to keep, for `OASST_LAYOUTS`; empty keeps all.
    """
    if layout == "oasst":
        return partial(oasst.conversations, languages=languages)
    if layout == "oasst_pairs":
        return partial(oasst.preferences, languages=languages)
    return LAYOUTS[layout]


def detect_layout(row: Any) -> str:
    """Return the layout that a row's columns imply; OASST's messages are taken for conversations.

    Raises:
        ValueError: no layout has these columns; lists the columns and the layouts.

    Example:
        >>> detect_layout({"id": 1, "conversations": [{"from": "human", "value": "Hi"}]})
        'sharegpt'
    """
    columns: set[Any] = set()
    if isinstance(row, Mapping):
        columns = {name for name, value in row.items() if value is not None}
    is_layout = {
        "oasst": columns >= {"message_id", "role", "text"},
        "preference": columns >= {"chosen", "rejected"},
        "messages": "messages" in columns,
        "sharegpt": bool(columns & {"conversations", "conversation"}),
        "ultrachat": "data" in columns and isinstance(row["data"], list),
        "prompt_completion": columns >= {"prompt", "completion"},
    }
    for layout, is_detected in is_layout.items():
        if is_detected:
            return layout
    names = ", ".join(sorted(map(str, columns))) or "(none)"
    raise ValueError(
        f"no known chat layout has the columns {names}; "
        f"name the layout, one of {', '.join(LAYOUTS)}, or convert the rows to `messages`"
    )


def _convert_each(
    rows: Iterable[Any],
    count_reason: CountReason,
    convert: Callable[[Row], tuple[T, Sequence[str]]],
) -> Iterator[T]:
    for row in rows:
        try:
            if not isinstance(row, Mapping):
                raise RejectedRowError(UNKNOWN_LAYOUT)
            converted, repairs = convert(row)
        except RejectedRowError as reason:
            count_reason(str(reason))
            continue
        for repair in repairs:
            count_reason(repair)
        yield converted


def _to_conversation(turns: Iterable[RawTurn]) -> tuple[Conversation, Sequence[str]]:
    normalized = normalize(turns)
    return Conversation(normalized.messages), normalized.repairs


def _get_list(row: Row, column: str) -> list[Any]:
    value = row.get(column)
    if not isinstance(value, list):
        raise RejectedRowError(UNKNOWN_LAYOUT)
    return value


def _read_turns(items: Iterable[Any]) -> Iterator[RawTurn]:
    """Yield messages of either pair of field names (from and value, role and content)."""
    for item in items:
        if not isinstance(item, Mapping):
            raise RejectedRowError(UNKNOWN_LAYOUT)
        if item.get("tool_calls") or item.get("function_call"):
            raise RejectedRowError(TOOL_TURN)
        if "from" in item:
            yield item["from"], item.get("value")
        else:
            yield item.get("role"), item.get("content")


def _read_column(row: Row, column: str, role: str) -> list[RawTurn]:
    """Return the turns of a column that holds messages, or one message of `role` as a string."""
    value = row.get(column)
    if isinstance(value, str):
        return [(role, value)]
    return list(_read_turns(_get_list(row, column)))


def _read_side(row: Row, column: str) -> list[RawTurn]:
    """Return the turns of one side of a pair, prompt included, wherever the prompt is written."""
    prompt = row.get("prompt") or None
    reply = row.get(column)
    if isinstance(reply, str) and isinstance(prompt, str | None):
        dialogue = (prompt or "") + reply
        if _SPEAKER.match(dialogue):
            speakers_and_texts = _SPEAKER.split(dialogue)[1:]
            return list(zip(speakers_and_texts[::2], speakers_and_texts[1::2], strict=True))
        if prompt is None:
            raise RejectedRowError("strings without a prompt")
    turns = _read_column(row, column, "assistant")
    starts_with_reply = not turns or parse_role(turns[0][0]) == "assistant"
    if prompt is None:
        return turns
    prompt_turns = _read_column(row, "prompt", "user")
    if starts_with_reply:
        return [*prompt_turns, *turns]
    parsed_prompt = _parse_turns(prompt_turns)
    if not _begins_with(_parse_turns(turns), parsed_prompt):
        raise RejectedRowError(f"the prompt is not the one inside {column}")
    return turns


def _parse_turns(turns: Iterable[RawTurn]) -> list[tuple[str, str]]:
    return [(parse_role(role), parse_content(content)) for role, content in turns]


def _begins_with(turns: list[tuple[str, str]], prompt: list[tuple[str, str]]) -> bool:
    """Whether a conversation begins with the prompt, possibly after a system message."""
    num_turns = len(prompt)
    return turns[:num_turns] == prompt or turns[1 : num_turns + 1] == prompt
