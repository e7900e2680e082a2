"""The demo's English conversations from `chatterbot_corpus`: read, deduplicated, and split.

Three topics hold conversations whose lines alternate; in the others the first line is a prompt and
every later line an alternative reply to it, so one entry gives several examples. One topic repeats
ten entries 1,050 times.

Invariant: no prompt and no reply of the held-out conversations, compared without case, punctuation
or spacing, is a line of any conversation that is trained on.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml

from slm_fn.core import files
from slm_fn.data.chat.records import Conversation, PreferencePair
from slm_fn.data.demo.shakespeare import package_folder
from slm_fn.data.io.holdout import is_held_out
from slm_fn.text.messages import Message

ALTERNATING_TOPICS = frozenset({"conversations", "health", "sports"})
"""Topics whose lines are turns; elsewhere the later lines are alternatives."""

Entry = tuple[str, Any]
"""(topic, what the corpus has for one conversation: a list of lines)."""


class ConversationSplit(NamedTuple):
    """Conversations to train on and to hold out.

    Attributes:
        train: the conversations to train on.
        held_out: the conversations held out.
        counts: how many entries and conversations there were at each step.
    """

    train: list[Conversation]
    held_out: list[Conversation]
    counts: dict[str, int]


def read_conversations(fraction: float = 0.1) -> ConversationSplit:
    """Read the installed corpus and split it.

    Args:
        fraction: the share of conversations to hold out.

    Raises:
        FileNotFoundError: the extra `demo` is not installed; names the command.
    """
    folder = package_folder("chatterbot_corpus") / "data" / "english"
    # The C loader is ten times as fast, where PyYAML was built with it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    entries: list[Entry] = []
    for file in sorted(folder.glob("*.yml")):
        document = yaml.load(file.read_bytes(), loader)
        entries += [(file.stem, entry) for entry in document["conversations"]]
    if not entries:
        raise FileNotFoundError(
            f'no conversations in {folder}; pip install --force-reinstall "slm_fn[demo]"'
        )
    return split_conversations(entries, fraction)


def normalize_line(text: str) -> str:
    """Return the form in which lines are compared: letters and digits without case, one space else.

    Example:
        >>> normalize_line("  What's AI?") == normalize_line("what s  ai")
        True
    """
    folded = unicodedata.normalize("NFKC", text).casefold()

    def keep_or_space(character: str) -> str:
        is_kept = character.isalnum() or unicodedata.combining(character)
        return character if is_kept else " "

    words = "".join(map(keep_or_space, folded)).split()
    return " ".join(words) or folded.strip()


def normalize_messages(conversation: Conversation) -> tuple[str, ...]:
    """Return the form in which conversations are compared: the normalized line of each message."""
    return tuple(normalize_line(message.content) for message in conversation.messages)


def split_conversations(entries: Iterable[Entry], fraction: float = 0.1) -> ConversationSplit:
    """Turn entries into conversations and hold out about `fraction` of them, without leaks.

    Conversations that share a line, a prompt or a reply, are one group, directly or through others;
    a group falls in one split, by a hash of its first line. Measured on the demo's 1,083: nothing
    has to be dropped (989 and 94 in 697 groups, the largest of 34), where grouping by prompts alone
    and dropping what contains a held-out line loses 12.
    """
    entries = list(entries)
    well_formed: list[tuple[str, tuple[str, ...]]] = []
    for topic, entry in entries:
        if _is_well_formed(entry):
            stripped = [line.strip() for line in entry]
            well_formed.append((topic, tuple(stripped)))
    distinct = list(dict.fromkeys(well_formed))
    examples: list[Conversation] = []
    for topic, lines in distinct:
        examples += _make_examples(topic, lines)
    unique: dict[tuple[str, ...], Conversation] = {}
    for example in examples:
        unique.setdefault(normalize_messages(example), example)

    group_of = _group_lines(unique)
    train: list[Conversation] = []
    held_out: list[Conversation] = []
    for normalized_lines, example in unique.items():
        group = group_of[normalized_lines[0]]
        if is_held_out(group, fraction):
            held_out.append(example)
        else:
            train.append(example)
    counts = {
        "entries": len(entries),
        "malformed": len(entries) - len(well_formed),
        "repeated_entries": len(well_formed) - len(distinct),
        "examples": len(examples),
        "repeated_examples": len(examples) - len(unique),
        "groups": len(set(group_of.values())),
        "train": len(train),
        "held_out": len(held_out),
    }
    return ConversationSplit(train, held_out, counts)


def write_chat(conversations: Iterable[Conversation], path: Path | str) -> None:
    """Write chat data as JSONL, atomically."""
    _write_lines(conversations, path)


def write_pairs(pairs: Iterable[PreferencePair], path: Path | str) -> None:
    """Write preference data as JSONL, atomically."""
    _write_lines(pairs, path)


def _write_lines(rows: Iterable[msgspec.Struct], path: Path | str) -> None:
    files.write(path, b"".join(msgspec.json.encode(row) + b"\n" for row in rows))


def _is_well_formed(entry: Any) -> bool:
    """Whether an entry is a list of at least two lines of text."""
    if not isinstance(entry, list) or len(entry) < 2:
        return False
    return all(isinstance(line, str) and line.strip() for line in entry)


def _make_examples(topic: str, lines: Sequence[str]) -> Iterator[Conversation]:
    if topic in ALTERNATING_TOPICS:
        num_turns = len(lines) // 2 * 2  # a last line of the user's has no reply to learn from
        turns = []
        for i, line in enumerate(lines[:num_turns]):
            turns.append(Message("assistant" if i % 2 else "user", line))
        yield Conversation(tuple(turns))
        return
    prompt = Message("user", lines[0])
    for reply in lines[1:]:
        yield Conversation((prompt, Message("assistant", reply)))


def _group_lines(conversations: Iterable[tuple[str, ...]]) -> dict[str, str]:
    """Map each line to the alphabetically first line of its group (union-find).

    A group is the lines that are connected through conversations.
    """
    parent: dict[str, str] = {}

    def find_root(line: str) -> str:
        while parent.setdefault(line, line) != line:
            line = parent[line]
        return line

    for lines in conversations:
        roots = {find_root(line) for line in lines}
        first = min(roots)
        for root in roots:
            parent[root] = first
    return {line: find_root(line) for line in list(parent)}
