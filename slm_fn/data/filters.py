"""Filters of conversations before fine-tuning, named in YAML: turns, lengths, refusals, repetition.

A filter returns the conversation, part of it, or None. Words are what white space parts, as in `data/repetition.py`.

Invariant: a filter is picklable and pure; what needs to remember, duplicates, is in `data/dedup.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from slm_fn.data import clean, repetition
from slm_fn.data.clean import CHANGED
from slm_fn.data.sources import Conversation

Role = Literal["system", "user", "assistant"]
REFUSALS = (
    r"\b(i'm|i am|we're) (sorry|afraid)\b.{0,60}\b(can't|cannot|can not|unable|not able)\b",
    r"\bi (can't|cannot|can not|won't|will not|am unable to|am not able to)\b.{0,20}"
    r"\b(assist|help|comply|fulfill|provide|answer|do that|engage|discuss|create|generate|write)\b",
    r"\bas an? (\w+ )?(ai|language model|artificial intelligence)\b",
    r"\bi (don't|do not) have (personal|access to|the ability)\b",
    r"\bit (is|would be) (not|inappropriate|unethical)\b.{0,40}\b(for me|to (provide|assist|help|generate|promote))\b",
)
"""English patterns, any case, of replies that do not answer; what data sets made with large models are full of."""


class Filter(NamedTuple):
    """What it is counted as, and what it makes of a conversation: the same, another, or None."""

    name: str
    apply: Callable[[Conversation], Conversation | None]


class Filtered(NamedTuple):
    """The conversation, or None; and why: the filter that removed it, `changed` where one cut it, else nothing."""

    conversation: Conversation | None
    reason: str


def apply(filters: Sequence[Filter], conversation: Conversation) -> Filtered:
    """What filters, one after the other, make of a conversation; the first that removes it ends the matter.

    Example:
        >>> from slm_fn.data.sources import Message
        >>> said = Conversation((Message("user", "Hi"), Message("assistant", "I'm sorry, but I cannot help.")))
        >>> apply(build(["turns", "refusals"]), said)
        Filtered(conversation=None, reason='refusals')
    """
    left = conversation
    for filter in filters:
        result = filter.apply(left)
        if result is None:
            return Filtered(None, filter.name)
        left = result
    return Filtered(left, "" if left == conversation else CHANGED)


def turns(least: int = 2, most: int | None = None) -> Filter:
    """Between so many turns, the system message not counted."""
    return _when("turns", _turns, least=least, most=most)


def _turns(conversation: Conversation, least: int, most: int | None) -> bool:
    num = sum(message.role != "system" for message in conversation.messages)
    return least <= num and (most is None or num <= most)


def first_turns(most: int) -> Filter:
    """The first turns, at most so many, the system message not counted and the last word the assistant's.

    Raises:
        ValueError: less than a question and its answer.
    """
    if most < 2:
        raise ValueError(f"first_turns: {most} is less than a question and its answer; give at least 2")
    return Filter("first_turns", partial(_first_turns, most=most))


def _first_turns(conversation: Conversation, most: int) -> Conversation:
    messages = conversation.messages
    stop = most // 2 * 2 + sum(message.role == "system" for message in messages)
    return conversation if len(messages) <= stop else Conversation(messages[:stop])


def message_length(role: Role = "assistant", least: int = 1, most: int | None = None) -> Filter:
    """Every message of a role between so many characters."""
    return _when(f"{role}_length", _message_length, role=role, least=least, most=most)


def _message_length(conversation: Conversation, role: str, least: int, most: int | None) -> bool:
    lengths = [len(text) for text in _said(conversation, role)]
    return all(least <= length and (most is None or length <= most) for length in lengths)


def total_length(least: int = 1, most: int | None = None) -> Filter:
    """All messages together between so many characters."""
    return _when("total_length", _total_length, least=least, most=most)


def _total_length(conversation: Conversation, least: int, most: int | None) -> bool:
    total = sum(len(message.content) for message in conversation.messages)
    return least <= total and (most is None or total <= most)


def refusals(patterns: Sequence[str] = REFUSALS, within: int = 200) -> Filter:
    """No reply whose first `within` characters match a pattern, in any case; a curly apostrophe is a plain one.

    Raises:
        ValueError: a pattern that is no regular expression.
    """
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"refusals: {pattern!r} is no regular expression: {error}") from None
    either = re.compile("|".join(f"(?:{pattern})" for pattern in patterns) or r"(?!)", re.IGNORECASE | re.DOTALL)
    return _when("refusals", _answers, either=either, within=within)


def _answers(conversation: Conversation, either: re.Pattern[str], within: int) -> bool:
    return not any(either.search(text[:within].replace("’", "'")) for text in _said(conversation, "assistant"))


def repeats(n: int = 5, most: float = 0.3) -> Filter:
    """No reply with more than this share of its characters in runs of `n` words that it has said before."""
    return _when("repeats", _fresh, rule=repetition.duplicate_ngrams(n, most))


def _fresh(conversation: Conversation, rule: clean.Rule) -> bool:
    return all(not text or rule.apply(text) is not None for text in _said(conversation, "assistant"))


def repeats_turns(n: int = 5, most: float = 0.5) -> Filter:
    """No reply with more than this share of its runs of `n` words from the replies before it; shorter ones may recur.

    Raises:
        ValueError: runs of no words.
    """
    if n < 1:
        raise ValueError(f"repeats_turns: runs of {n} words; give at least 1")
    return _when("repeats_turns", _new, n=n, most=most)


def _new(conversation: Conversation, n: int, most: float) -> bool:
    before: set[tuple[str, ...]] = set()
    for text in _said(conversation, "assistant"):
        words = text.casefold().split()
        runs = set(zip(*(words[k:] for k in range(n)), strict=False))
        if len(runs & before) > most * len(runs):
            return False
        before |= runs
    return True


FILTERS: dict[str, Callable[..., Filter]] = {
    constructor.__name__: constructor
    for constructor in (turns, first_turns, message_length, total_length, refusals, repeats, repeats_turns)
}
"""What YAML can name."""


def build(specs: Iterable[object]) -> tuple[Filter, ...]:
    """Filters from what a config says: a name, or a name with its arguments, as `clean.build` reads rules.

    Raises:
        ValueError: an unknown filter or argument (names the nearest one), or an argument of the wrong type.

    Example:
        >>> [filter.name for filter in build(["refusals", {"message_length": {"role": "user", "most": 4000}}])]
        ['refusals', 'user_length']
    """
    return clean.build(specs, FILTERS)


def _when(name: str, keeps: Callable[..., bool], **arguments: Any) -> Filter:
    return Filter(name, partial(_judged, keeps=partial(keeps, **arguments)))


def _judged(conversation: Conversation, keeps: Callable[[Conversation], bool]) -> Conversation | None:
    return conversation if keeps(conversation) else None


def _said(conversation: Conversation, role: str) -> Iterator[str]:
    return (message.content for message in conversation.messages if message.role == role)
