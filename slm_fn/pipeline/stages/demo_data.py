"""Stage: the demo's plays, conversations and preference pairs as files, each with a held-out part.

Invariant: no held-out play, prompt or reply is in any training file.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from slm_fn.core import files
from slm_fn.data.chat.records import Conversation
from slm_fn.data.demo import conversations, preferences, shakespeare
from slm_fn.data.io.documents import Document

REJECTED_PER_CHOSEN = 4
MAX_REPLY_CHARACTERS = 160
"""A model of this size learns replies of a sentence or two; longer ones are not trained on."""
VAL_PAIRS_PER_REPLY = 6


class DemoData(NamedTuple):
    """The demo's data: plays in memory, and the JSONL files written."""

    plays: list[Document]
    held_out_plays: list[Document]
    chat: Path
    held_out_chat: Path
    pairs: Path
    held_out_pairs: Path
    counts: dict[str, int]


def prepare_demo(out: Path | str) -> DemoData:
    """Write the demo's data under `out`.

    Raises:
        FileNotFoundError: the extra `demo` is not installed; names the command that installs it.
    """
    out = Path(out)
    plays, held_out_plays = _write_plays(out)
    corpus = conversations.read_conversations()
    short = [conversation for conversation in corpus.train if _has_short_replies(conversation)]
    counts = {**corpus.counts, "too_long": len(corpus.train) - len(short), "train": len(short)}
    data = DemoData(
        plays,
        held_out_plays,
        chat=out / "chat.jsonl",
        held_out_chat=out / "chat.held_out.jsonl",
        pairs=out / "pairs.jsonl",
        held_out_pairs=out / "pairs.held_out.jsonl",
        counts=counts,
    )
    conversations.write_chat(short, data.chat)
    conversations.write_chat(corpus.held_out, data.held_out_chat)
    pairs = preferences.preference_pairs(corpus.train, 0, REJECTED_PER_CHOSEN)
    conversations.write_pairs(pairs, data.pairs)
    val_pairs = preferences.held_out_pairs(corpus.held_out, 0, VAL_PAIRS_PER_REPLY)
    conversations.write_pairs(val_pairs, data.held_out_pairs)
    files.write(out / "counts.json", msgspec.json.format(msgspec.json.encode(counts)))
    return data


def _write_plays(out: Path) -> tuple[list[Document], list[Document]]:
    """Write every play; returns those to train on and those held out."""
    train: list[Document] = []
    held_out: list[Document] = []
    for play in shakespeare.read_plays():
        is_held_out = play.name in shakespeare.HELD_OUT_PLAYS
        (held_out if is_held_out else train).append(play)
        folder = out / ("held_out" if is_held_out else "text")
        files.write(folder / f"{play.name}.md", play.text)
    return train, held_out


def _has_short_replies(conversation: Conversation) -> bool:
    replies = [message for message in conversation.messages if message.role == "assistant"]
    return all(len(reply.content) <= MAX_REPLY_CHARACTERS for reply in replies)
