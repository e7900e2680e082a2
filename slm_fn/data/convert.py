"""Conversations and preference pairs from the layouts of public data sets: OASST, UltraChat, ShareGPT, TRL, OpenAI.

Each layout is a function from rows as they stream out of a file to `Conversation` or `Preference`; turns are tidied by
`data/turns.py`, and what was tidied or dropped is counted by reason.

Invariant: every row (of OASST: every tree) is yielded or counted once under a reason that does not begin with `KEPT`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from slm_fn.data import oasst
from slm_fn.data.sources import Conversation, Preference
from slm_fn.data.turns import FOREIGN, Refused, Tidied, part, role_of, text_of, tidy

Row = Mapping[str, Any]
Count = Callable[[str], None]
Convert = Callable[..., Iterator[Conversation] | Iterator[Preference]]
"""From rows and a count; OASST's take `languages` too."""
T = TypeVar("T")
_SPOKEN = re.compile(r"\n\n(Human|Assistant):")


def messages(rows: Iterable[Any], count: Count) -> Iterator[Conversation]:
    """OpenAI's and TRL's `messages` of role and content; ultrachat_200k is written so too.

    Example:
        >>> row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
        >>> [len(conversation.messages) for conversation in messages([row, {}], print)]
        not of this layout
        [2]
    """
    return _each(rows, count, lambda row: _conversation(tidy(_turns(_list(row, "messages")))))


def sharegpt(rows: Iterable[Any], count: Count) -> Iterator[Conversation]:
    """ShareGPT's `conversations` of from and value; role and content there are read as well, and a `system` beside."""

    def convert(row: Row) -> tuple[Conversation, Sequence[str]]:
        name = "conversations" if "conversations" in row else "conversation"
        first = [("system", row["system"])] if row.get("system") else []
        return _conversation(tidy([*first, *_turns(_list(row, name))]))

    return _each(rows, count, convert)


def ultrachat(rows: Iterable[Any], count: Count) -> Iterator[Conversation]:
    """UltraChat as it was first published: `data`, a list of strings that the user begins."""

    def convert(row: Row) -> tuple[Conversation, Sequence[str]]:
        return _conversation(tidy((("user", "assistant")[i % 2], line) for i, line in enumerate(_list(row, "data"))))

    return _each(rows, count, convert)


def prompt_completion(rows: Iterable[Any], count: Count) -> Iterator[Conversation]:
    """TRL's `prompt` and `completion`, strings or messages; rows whose `label` is false are not wanted."""

    def convert(row: Row) -> tuple[Conversation, Sequence[str]]:
        if row.get("label") is False:
            raise Refused("labelled as not wanted")
        return _conversation(tidy([*_said(row, "prompt", "user"), *_said(row, "completion", "assistant")]))

    return _each(rows, count, convert)


def preference(rows: Iterable[Any], count: Count) -> Iterator[Preference]:
    """TRL's `chosen` and `rejected`, strings or messages, with a `prompt` beside them or inside both.

    Strings without a prompt are read where they are written as Anthropic's `Human:` and `Assistant:`. What the two
    sides have in common is the prompt, which a turn of the user's ends.

    Example:
        >>> row = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
        >>> [(pair.prompt[0].role, pair.rejected[0].content) for pair in preference([row], print)]
        [('user', 'What?')]
    """

    def convert(row: Row) -> tuple[Preference, Sequence[str]]:
        chosen, rejected = tidy(_side(row, "chosen")), tidy(_side(row, "rejected"))
        pair = part(chosen.messages, rejected.messages)
        return pair, tuple(dict.fromkeys((*chosen.repairs, *rejected.repairs)))

    return _each(rows, count, convert)


CHAT: dict[str, Convert] = {
    "messages": messages,
    "oasst": oasst.conversations,
    "ultrachat": ultrachat,
    "sharegpt": sharegpt,
    "prompt_completion": prompt_completion,
}
"""Layouts that yield `Conversation`, by the name a config gives."""
PAIRS: dict[str, Convert] = {"preference": preference, "oasst_pairs": oasst.preferences}
"""Layouts that yield `Preference`."""
LAYOUTS = CHAT | PAIRS


def detect(row: Any) -> str:
    """The layout that a row's columns look like; OASST's messages are taken for conversations.

    Raises:
        ValueError: none; lists the columns and the layouts.

    Example:
        >>> detect({"id": 1, "conversations": [{"from": "human", "value": "Hi"}]})
        'sharegpt'
    """
    columns = {name for name, value in row.items() if value is not None} if isinstance(row, Mapping) else set()
    told = (
        ("oasst", columns >= {"message_id", "role", "text"}),
        ("preference", columns >= {"chosen", "rejected"}),
        ("messages", "messages" in columns),
        ("sharegpt", bool(columns & {"conversations", "conversation"})),
        ("ultrachat", "data" in columns and isinstance(row["data"], list)),
        ("prompt_completion", columns >= {"prompt", "completion"}),
    )
    for name, fits in told:
        if fits:
            return name
    raise ValueError(
        f"no known chat layout has the columns {', '.join(sorted(map(str, columns))) or '(none)'}; "
        f"name the layout, one of {', '.join(LAYOUTS)}, or convert the rows to `messages`"
    )


def _each(rows: Iterable[Any], count: Count, convert: Callable[[Row], tuple[T, Sequence[str]]]) -> Iterator[T]:
    for row in rows:
        try:
            if not isinstance(row, Mapping):
                raise Refused(FOREIGN)
            converted, repairs = convert(row)
        except Refused as reason:
            count(str(reason))
            continue
        for repair in repairs:
            count(repair)
        yield converted


def _conversation(tidied: Tidied) -> tuple[Conversation, Sequence[str]]:
    return Conversation(tidied.messages), tidied.repairs


def _list(row: Row, column: str) -> list[Any]:
    if not isinstance(row.get(column), list):
        raise Refused(FOREIGN)
    value: list[Any] = row[column]
    return value


def _turns(items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Messages by either pair of names, as (role, content)."""
    for item in items:
        if not isinstance(item, Mapping):
            raise Refused(FOREIGN)
        if item.get("tool_calls") or item.get("function_call"):
            raise Refused("a tool's turn")
        yield (item["from"], item.get("value")) if "from" in item else (item.get("role"), item.get("content"))


def _said(row: Row, column: str, role: str) -> list[tuple[Any, Any]]:
    """A column that holds messages, or one message of `role` as a string."""
    return [(role, row[column])] if isinstance(row.get(column), str) else list(_turns(_list(row, column)))


def _side(row: Row, column: str) -> list[tuple[Any, Any]]:
    """Prompt and answer of one side, wherever the prompt stands."""
    prompt, answer = row.get("prompt") or None, row.get(column)
    if isinstance(answer, str) and isinstance(prompt, str | None):
        whole = (prompt or "") + answer
        if _SPOKEN.match(whole):
            names = _SPOKEN.split(whole)[1:]
            return list(zip(names[::2], names[1::2], strict=True))
        if prompt is None:
            raise Refused("strings without a prompt")
    said = _said(row, column, "assistant")
    if not said or role_of(said[0][0]) == "assistant":
        return [*(_said(row, "prompt", "user") if prompt is not None else []), *said]
    if prompt is not None:
        told = [(role_of(role), text_of(text)) for role, text in _said(row, "prompt", "user")]
        inside = [(role_of(role), text_of(text)) for role, text in said]
        if told not in (inside[: len(told)], inside[1 : len(told) + 1]):
            raise Refused(f"the prompt is not the one inside {column}")
    return said
