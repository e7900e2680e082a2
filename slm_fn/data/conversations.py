"""The demo's English conversations from `chatterbot_corpus`: read, freed of duplicates, split without leaks, paired.

Three topics hold conversations whose lines alternate; in the others the first line is a prompt and every later line an
alternative reply to it, so one entry gives several examples. One topic repeats ten entries 1,050 times.

Invariant: no prompt and no reply of the held-out part, compared without case, punctuation or spacing, is a line
of any conversation that is trained on.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml

from slm_fn.core import files, random
from slm_fn.core.random import Key
from slm_fn.data.holdout import held_out
from slm_fn.data.plays import folder_of
from slm_fn.data.sources import Conversation, Message, Preference

ALTERNATING = frozenset({"conversations", "health", "sports"})
"""Topics whose lines are turns; elsewhere the later lines are alternatives."""


class Corpus(NamedTuple):
    """Conversations to train on and to hold out, and how many there were at each step on the way."""

    train: list[Conversation]
    held_out: list[Conversation]
    counts: dict[str, int]


def read_conversations(fraction: float = 0.1) -> Corpus:
    """The installed corpus, split.

    Raises:
        FileNotFoundError: the extra `demo` is not installed; names the command.
    """
    folder = folder_of("chatterbot_corpus") / "data" / "english"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times as fast, where it was built
    found = [
        (file.stem, entry)
        for file in sorted(folder.glob("*.yml"))
        for entry in yaml.load(file.read_bytes(), loader)["conversations"]
    ]
    if not found:
        raise FileNotFoundError(f'no conversations in {folder}; pip install --force-reinstall "slm_fn[demo]"')
    return split(found, fraction)


def normalise(text: str) -> str:
    """What counts as the same line: letters and digits without case, everything else one space.

    Example:
        >>> normalise("  What's AI?") == normalise("what s  ai")
        True
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(c if c.isalnum() or unicodedata.combining(c) else " " for c in folded)
    return " ".join(kept.split()) or folded.strip()


def split(entries: Iterable[tuple[str, Any]], fraction: float = 0.1) -> Corpus:
    """Turn (topic, entry) into conversations and hold out about `fraction` of them, without leaks.

    Conversations that share a line, a prompt or a reply, are one group, directly or through others; a group goes one
    way as a whole, by a hash of its first line. Measured on the demo's 1,083: nothing need be dropped (989 and 94 in
    697 groups, the largest of 34), where grouping by prompts alone and dropping what holds a held-out line loses 12.
    """
    entries = list(entries)
    wellformed = [(topic, [line.strip() for line in entry]) for topic, entry in entries if _is_wellformed(entry)]
    distinct = list(dict.fromkeys((topic, tuple(lines)) for topic, lines in wellformed))
    examples = [example for topic, lines in distinct for example in _examples(topic, lines)]
    unique: dict[tuple[str, ...], Conversation] = {}
    for example in examples:
        unique.setdefault(_lines(example), example)

    group = _groups(unique)
    sides: dict[bool, list[Conversation]] = {True: [], False: []}
    for lines, example in unique.items():
        sides[held_out(group[lines[0]], fraction)].append(example)
    counts = {
        "entries": len(entries),
        "malformed": len(entries) - len(wellformed),
        "repeated_entries": len(wellformed) - len(distinct),
        "examples": len(examples),
        "repeated_examples": len(examples) - len(unique),
        "groups": len(set(group.values())),
        "train": len(sides[False]),
        "held_out": len(sides[True]),
    }
    return Corpus(sides[False], sides[True], counts)


def _is_wellformed(entry: Any) -> bool:
    """A list of at least two lines of text."""
    return isinstance(entry, list) and len(entry) > 1 and all(isinstance(x, str) and x.strip() for x in entry)


def _examples(topic: str, lines: Sequence[str]) -> Iterator[Conversation]:
    if topic in ALTERNATING:
        turns = lines[: len(lines) // 2 * 2]  # a last line of the user's has no reply to learn from
        yield Conversation(tuple(Message(("user", "assistant")[i % 2], line) for i, line in enumerate(turns)))
    else:
        for reply in lines[1:]:
            yield Conversation((Message("user", lines[0]), Message("assistant", reply)))


def _lines(conversation: Conversation) -> tuple[str, ...]:
    return tuple(normalise(message.content) for message in conversation.messages)


def _groups(conversations: Iterable[tuple[str, ...]]) -> dict[str, str]:
    """For each line the first, in the alphabet, of those that conversations tie it to (union-find)."""
    parent: dict[str, str] = {}

    def root(line: str) -> str:
        while parent.setdefault(line, line) != line:
            line = parent[line]
        return line

    for lines in conversations:
        roots = {root(line) for line in lines}
        for other in roots:
            parent[other] = min(roots)
    return {line: root(line) for line in list(parent)}


class _Turn(NamedTuple):
    """A reply and what it answers."""

    prompt: tuple[Message, ...]
    reply: Message


def _turns(conversations: Iterable[Conversation]) -> list[_Turn]:
    """Every reply, once: conversations may begin alike."""
    turns: dict[tuple[str, ...], _Turn] = {}
    for conversation in conversations:
        for i, message in enumerate(conversation.messages):
            if message.role == "assistant":
                turns.setdefault(_lines(conversation)[: i + 1], _Turn(conversation.messages[:i], message))
    return list(turns.values())


def preference_pairs(conversations: Sequence[Conversation], key: Key, num_rejected: int) -> list[Preference]:
    """Every reply against `num_rejected` different replies to other prompts, none of which is a reply to this one.

    Turns are put in a random order, and each is paired with the replies that follow it there, round in a ring: a reply
    is rejected about as often as it is chosen, so what is learnt is the match, not which replies are liked.

    Raises:
        ValueError: some prompt has fewer than `num_rejected` such replies.
    """
    turns = _turns(conversations)
    order = [turns[random.permute(key, i, len(turns))] for i in range(len(turns))]
    replies = [normalise(turn.reply.content) for turn in order]
    asked = [normalise(turn.prompt[-1].content) for turn in order]
    given: dict[str, set[str]] = {}
    for prompt, reply in zip(asked, replies, strict=True):
        given.setdefault(prompt, set()).add(reply)

    pairs = []
    for i, turn in enumerate(order):
        seen = set(given[asked[i]])
        rejected: list[Message] = []
        for j in range(i + 1, i + len(order)):
            k = j % len(order)
            if len(rejected) < num_rejected and replies[k] not in seen:
                seen.add(replies[k])
                rejected.append(order[k].reply)
        if len(rejected) < num_rejected:
            raise ValueError(
                f"only {len(rejected)} replies to other prompts than {turn.prompt[-1].content!r}; "
                f"{num_rejected} are wanted"
            )
        pairs += [Preference(turn.prompt, (turn.reply,), (other,)) for other in rejected]
    return pairs


def held_out_trials(conversations: Sequence[Conversation], key: Key, num: int = 6) -> list[Preference]:
    """Held-out replies each against `num` others, held out as well, so that neither was trained on.

    Raises:
        ValueError: too few held-out replies.
    """
    return preference_pairs(conversations, key, num)


def write_chat(conversations: Iterable[Conversation], path: Path | str) -> None:
    """Chat data as JSONL, atomically."""
    _write(conversations, path)


def write_pairs(pairs: Iterable[Preference], path: Path | str) -> None:
    """Preference data as JSONL, atomically."""
    _write(pairs, path)


def _write(rows: Iterable[msgspec.Struct], path: Path | str) -> None:
    files.write(path, b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
