"""Filters of conversations before fine-tuning, named in YAML: turns, lengths, refusals, repetition.

A filter returns the conversation, a part of it, or None. Words are separated by white space, as in
`data/clean/repetition.py`.

Invariant: a filter is picklable and pure; what needs memory, duplicates, is in
`data/corpus/duplicates.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from slm_fn.data.chat.records import Conversation
from slm_fn.data.clean import cleaning, repetition
from slm_fn.data.clean.cleaning import CHANGED
from slm_fn.data.clean.rules import Rule
from slm_fn.text.messages import Role

REFUSAL_PATTERNS = (
    r"\b(i'm|i am|we're) (sorry|afraid)\b.{0,60}\b(can't|cannot|can not|unable|not able)\b",
    r"\bi (can't|cannot|can not|won't|will not|am unable to|am not able to)\b.{0,20}"
    r"\b(assist|help|comply|fulfill|provide|answer|do that|engage|discuss|create|generate|write)\b",
    r"\bas an? (\w+ )?(ai|language model|artificial intelligence)\b",
    r"\bi (don't|do not) have (personal|access to|the ability)\b",
    r"\bit (is|would be) (not|inappropriate|unethical)\b.{0,40}"
    r"\b(for me|to (provide|assist|help|generate|promote))\b",
)
"""English patterns, in any case, of refusals to answer, as language models write them."""


class ChatFilter(NamedTuple):
    """A filter of conversations.

    Attributes:
        name: what it is counted under.
        apply: returns the conversation, the same or shortened, or None to remove it.
    """

    name: str
    apply: Callable[[Conversation], Conversation | None]


class FilterResult(NamedTuple):
    """The outcome of a sequence of filters.

    Attributes:
        conversation: what is left, or None.
        reason: the filter that removed it, `CHANGED` if one shortened it, else an empty string.
    """

    conversation: Conversation | None
    reason: str


def apply(filters: Sequence[ChatFilter], conversation: Conversation) -> FilterResult:
    """Apply filters in order; the first one that removes the conversation is the last one applied.

    Example:
        >>> from slm_fn.text.messages import Message
        >>> reply = Message("assistant", "I'm sorry, but I cannot help.")
        >>> conversation = Conversation((Message("user", "Hi"), reply))
        >>> apply(build(["turns", "refusals"]), conversation)
        FilterResult(conversation=None, reason='refusals')
    """
    filtered = conversation
    for chat_filter in filters:
        result = chat_filter.apply(filtered)
        if result is None:
            return FilterResult(None, chat_filter.name)
        filtered = result
    return FilterResult(filtered, "" if filtered == conversation else CHANGED)


def turns(least: int = 2, most: int | None = None) -> ChatFilter:
    """Keep conversations of `least` to `most` turns, the system message not counted."""
    return _keep_if("turns", _has_turns, least=least, most=most)


def first_turns(most: int) -> ChatFilter:
    """Cut conversations after `most` turns, so that they end with a reply.

    The system message is not counted.

    Raises:
        ValueError: less than a question and its answer.
    """
    if most < 2:
        raise ValueError(
            f"first_turns: {most} is less than a question and its answer; give at least 2"
        )
    return ChatFilter("first_turns", partial(_cut_turns, most=most))


def message_length(role: Role = "assistant", least: int = 1, most: int | None = None) -> ChatFilter:
    """Keep conversations whose messages of a role all have `least` to `most` characters."""
    return _keep_if(f"{role}_length", _has_message_lengths, role=role, least=least, most=most)


def total_length(least: int = 1, most: int | None = None) -> ChatFilter:
    """Keep conversations of `least` to `most` characters in all messages together."""
    return _keep_if("total_length", _has_total_length, least=least, most=most)


def refusals(patterns: Sequence[str] = REFUSAL_PATTERNS, within: int = 200) -> ChatFilter:
    """Remove conversations with a reply that matches a pattern in its first `within` characters.

    Case is ignored, and a curly apostrophe matches a straight one.

    Raises:
        ValueError: a pattern is not a regular expression.
    """
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"refusals: {pattern!r} is no regular expression: {error}") from None
    alternatives = "|".join(f"(?:{pattern})" for pattern in patterns)
    never = r"(?!)"
    any_pattern = re.compile(alternatives or never, re.IGNORECASE | re.DOTALL)
    return _keep_if("refusals", _has_no_match, any_pattern=any_pattern, within=within)


def repeats(n: int = 5, most: float = 0.3) -> ChatFilter:
    """Remove conversations with a reply that repeats itself.

    A reply repeats itself if more than the share `most` of its characters is in runs of `n` words
    that occur earlier in the reply.
    """
    return _keep_if("repeats", _passes_rule, rule=repetition.duplicate_ngrams(n, most))


def repeats_turns(n: int = 5, most: float = 0.5) -> ChatFilter:
    """Remove conversations with a reply that repeats earlier replies.

    A reply repeats earlier ones if more than the share `most` of its runs of `n` words is in them;
    replies of fewer words may recur.

    Raises:
        ValueError: `n` is less than 1.
    """
    if n < 1:
        raise ValueError(f"repeats_turns: runs of {n} words; give at least 1")
    return _keep_if("repeats_turns", _has_new_replies, n=n, most=most)


FILTERS: dict[str, Callable[..., ChatFilter]] = {
    constructor.__name__: constructor
    for constructor in (
        turns,
        first_turns,
        message_length,
        total_length,
        refusals,
        repeats,
        repeats_turns,
    )
}
"""The filters that YAML can name."""


def build(specs: Iterable[object]) -> tuple[ChatFilter, ...]:
    """Build the filters that a config names.

    Args:
        specs: names, or names with their arguments, as `cleaning.build` reads rules.

    Raises:
        ValueError: an unknown filter or argument (suggests the nearest one), or an argument of the
            wrong type.

    Example:
        >>> specs = ["refusals", {"message_length": {"role": "user", "most": 4000}}]
        >>> [chat_filter.name for chat_filter in build(specs)]
        ['refusals', 'user_length']
    """
    return cleaning.build_rules(specs, FILTERS)


def _keep_if(name: str, predicate: Callable[..., bool], **arguments: Any) -> ChatFilter:
    """Return the filter that keeps the conversations for which the predicate is true."""
    is_kept = partial(predicate, **arguments)
    return ChatFilter(name, partial(_apply_predicate, is_kept=is_kept))


def _apply_predicate(
    conversation: Conversation, is_kept: Callable[[Conversation], bool]
) -> Conversation | None:
    return conversation if is_kept(conversation) else None


def _is_within(number: int, least: int, most: int | None) -> bool:
    return least <= number and (most is None or number <= most)


def _has_turns(conversation: Conversation, least: int, most: int | None) -> bool:
    num_turns = sum(message.role != "system" for message in conversation.messages)
    return _is_within(num_turns, least, most)


def _cut_turns(conversation: Conversation, most: int) -> Conversation:
    messages = conversation.messages
    num_system = sum(message.role == "system" for message in messages)
    num_even_turns = most // 2 * 2
    stop = num_system + num_even_turns
    return conversation if len(messages) <= stop else Conversation(messages[:stop])


def _has_message_lengths(
    conversation: Conversation, role: str, least: int, most: int | None
) -> bool:
    lengths = [len(text) for text in _texts_of_role(conversation, role)]
    return all(_is_within(length, least, most) for length in lengths)


def _has_total_length(conversation: Conversation, least: int, most: int | None) -> bool:
    total = sum(len(message.content) for message in conversation.messages)
    return _is_within(total, least, most)


def _has_no_match(conversation: Conversation, any_pattern: re.Pattern[str], within: int) -> bool:
    for text in _texts_of_role(conversation, "assistant"):
        if any_pattern.search(text[:within].replace("’", "'")):
            return False
    return True


def _passes_rule(conversation: Conversation, rule: Rule) -> bool:
    """Whether every reply that is not empty passes a rule of cleaning."""
    for text in _texts_of_role(conversation, "assistant"):
        if text and rule.apply(text) is None:
            return False
    return True


def _has_new_replies(conversation: Conversation, n: int, most: float) -> bool:
    earlier_runs: set[tuple[str, ...]] = set()
    for text in _texts_of_role(conversation, "assistant"):
        words = text.casefold().split()
        shifted = [words[k:] for k in range(n)]
        runs = set(zip(*shifted, strict=False))
        if len(runs & earlier_runs) > most * len(runs):
            return False
        earlier_runs |= runs
    return True


def _texts_of_role(conversation: Conversation, role: str) -> Iterator[str]:
    for message in conversation.messages:
        if message.role == role:
            yield message.content
