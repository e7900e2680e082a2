"""Preference pairs of the demo: each reply of a conversation against replies to other prompts.

Invariant: no rejected reply is also a reply to the pair's prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from slm_fn.core import random
from slm_fn.core.random import Key
from slm_fn.data.chat.records import Conversation, PreferencePair
from slm_fn.data.demo.conversations import normalize_messages
from slm_fn.text.messages import Message


class _Turn(NamedTuple):
    """A reply and the messages before it, with the normalized lines of prompt and reply."""

    prompt: tuple[Message, ...]
    reply: Message
    prompt_line: str
    reply_line: str


def preference_pairs(
    conversations: Sequence[Conversation], key: Key, num_rejected: int
) -> list[PreferencePair]:
    """Pair every reply with `num_rejected` different replies to other prompts.

    Turns are put in a random order, and each is paired with the replies that follow it there, in a
    ring: a reply is rejected about as often as it is chosen, so a model learns which reply matches
    the prompt, not which replies are preferred in general.

    Args:
        key: the random key of the order.
        num_rejected: the number of pairs for each reply.

    Raises:
        ValueError: some prompt has fewer than `num_rejected` such replies.
    """
    turns = _list_turns(conversations)
    num_turns = len(turns)
    order = [turns[random.permute_index(key, i, num_turns)] for i in range(num_turns)]
    replies_to: dict[str, set[str]] = {}
    for turn in order:
        replies_to.setdefault(turn.prompt_line, set()).add(turn.reply_line)

    pairs = []
    for i, turn in enumerate(order):
        candidates = [*order[i + 1 :], *order[:i]]
        excluded = replies_to[turn.prompt_line]
        rejected = _choose_rejected(candidates, excluded, num_rejected)
        if len(rejected) < num_rejected:
            raise ValueError(
                f"only {len(rejected)} replies to other prompts than {turn.prompt[-1].content!r}; "
                f"{num_rejected} are needed"
            )
        pairs += [PreferencePair(turn.prompt, (turn.reply,), (reply,)) for reply in rejected]
    return pairs


def held_out_pairs(
    conversations: Sequence[Conversation], key: Key, num_rejected: int = 6
) -> list[PreferencePair]:
    """Pair held-out replies with `num_rejected` others, also held out: neither was trained on.

    Raises:
        ValueError: too few held-out replies.
    """
    return preference_pairs(conversations, key, num_rejected)


def _list_turns(conversations: Iterable[Conversation]) -> list[_Turn]:
    """Return every reply once: conversations may begin with the same messages."""
    turns: dict[tuple[str, ...], _Turn] = {}
    for conversation in conversations:
        lines = normalize_messages(conversation)
        for i, message in enumerate(conversation.messages):
            if message.role == "assistant":
                turn = _Turn(conversation.messages[:i], message, lines[i - 1], lines[i])
                turns.setdefault(lines[: i + 1], turn)
    return list(turns.values())


def _choose_rejected(
    candidates: Sequence[_Turn], excluded: set[str], num_rejected: int
) -> list[Message]:
    """Return the first `num_rejected` different replies that are not excluded."""
    used = set(excluded)
    rejected: list[Message] = []
    for candidate in candidates:
        if len(rejected) == num_rejected:
            break
        if candidate.reply_line not in used:
            used.add(candidate.reply_line)
            rejected.append(candidate.reply)
    return rejected
