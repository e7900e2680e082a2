"""Stage: the demo's sources to files: plays to train on and to hold out, conversations and preferences as JSONL.

Invariant: no held-out play, prompt or reply is in any training file.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from slm_fn.core import files
from slm_fn.data import conversations, plays
from slm_fn.data.sources import Conversation, Document

REJECTED_PER_CHOSEN = 4
LONGEST_REPLY = 160
"""Characters: a model of this size learns to answer in a sentence or two. Longer replies are left out of training."""
TRIALS_PER_REPLY = 6


class Prepared(NamedTuple):
    """The demo's data: documents in memory, and the JSONL files written."""

    plays: list[Document]
    held_out_plays: list[Document]
    chat: Path
    held_out_chat: Path
    pairs: Path
    held_out_pairs: Path
    counts: dict[str, int]


def prepare_demo(out: Path | str) -> Prepared:
    """Write the demo's corpus under `out` and say what was kept.

    Raises:
        FileNotFoundError: the extra `demo` is not installed; names the command.
    """
    out = Path(out)
    documents = plays.read_plays()
    corpus = conversations.read_conversations()
    for document in documents:
        files.write(
            out / ("held_out" if document.name in plays.HELD_OUT else "text") / f"{document.name}.md", document.text
        )
    short = [row for row in corpus.train if all(len(said) <= LONGEST_REPLY for said in _replies(row))]
    counts = {**corpus.counts, "too_long": len(corpus.train) - len(short), "train": len(short)}
    chat, held_chat = out / "chat.jsonl", out / "chat.held_out.jsonl"
    pairs, held_pairs = out / "pairs.jsonl", out / "pairs.held_out.jsonl"
    conversations.write_chat(short, chat)
    conversations.write_chat(corpus.held_out, held_chat)
    conversations.write_pairs(conversations.preference_pairs(corpus.train, 0, REJECTED_PER_CHOSEN), pairs)
    conversations.write_pairs(conversations.held_out_trials(corpus.held_out, 0, TRIALS_PER_REPLY), held_pairs)
    files.write(out / "counts.json", msgspec.json.format(msgspec.json.encode(counts)))
    return Prepared(
        [d for d in documents if d.name not in plays.HELD_OUT],
        [d for d in documents if d.name in plays.HELD_OUT],
        chat,
        held_chat,
        pairs,
        held_pairs,
        counts,
    )


def _replies(row: Conversation) -> list[str]:
    return [message.content for message in row.messages if message.role == "assistant"]
