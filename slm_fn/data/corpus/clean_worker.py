"""One item of a corpus cleaned: normalized, filtered, sketched for duplicates, encoded as JSONL.

A text that comes in chunks is cleaned chunk by chunk, and each chunk is a line of its own. In a
conversation or a pair every message goes through the rules, and one that a rule removes removes
the whole item; filters come after the rules.

Invariant: cleaning is pure and picklable, so a worker process gives what this process would.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Literal, NamedTuple, TypeVar

import msgspec
import numpy as np

from slm_fn.data.chat import filters
from slm_fn.data.chat.filters import ChatFilter
from slm_fn.data.chat.records import Conversation, PreferencePair
from slm_fn.data.clean.cleaning import CHANGED, clean
from slm_fn.data.clean.minhash import DedupConfig, Sketch, fold_text, make_sketch, text_digest
from slm_fn.data.clean.rules import Rule
from slm_fn.data.corpus.source_rows import Item, SourceRow
from slm_fn.data.io.documents import Document
from slm_fn.data.io.workers import batched, map_in_order
from slm_fn.text.messages import Message

BATCH_CHARACTERS = 1 << 20
BATCH_ROWS = 512
"""What is sent to a worker at a time."""
_NO_SIGNATURE = np.zeros(0, np.uint8)

C = TypeVar("C", bound=Conversation | PreferencePair)


class CleanedItem(NamedTuple):
    """What cleaning made of an item. For a row without an item, `line` and `sketch` are None.

    Attributes:
        line: the item as a line of JSONL; None if a rule or filter removed it.
        reason: the rule or filter that removed it, or `CHANGED` if one edited it; else empty.
        num_bytes: the bytes of its text before cleaning, in UTF-8.
        num_bytes_kept: the bytes of its text after cleaning.
        sketch: what identifies its duplicates, if they are dropped.
    """

    line: bytes | None
    reason: str = ""
    num_bytes: int = 0
    num_bytes_kept: int = 0
    sketch: Sketch | None = None


class CleanWorker(NamedTuple):
    """The cleaning of one source: its rules and filters, and how duplicates are identified.

    Attributes:
        rules: for its texts.
        url_rules: for the URLs of its records.
        dedup: whether the sketch finds exact or near duplicates, or none.
        near: how near duplicates are found.
        filters: for its conversations, after the rules.
    """

    rules: tuple[Rule, ...]
    url_rules: tuple[Rule, ...] = ()
    dedup: Literal["none", "exact", "near"] = "none"
    near: DedupConfig = DedupConfig()
    filters: tuple[ChatFilter, ...] = ()

    def clean(self, rows: Sequence[SourceRow]) -> list[CleanedItem]:
        """Clean the item of each row."""
        return [self._clean_row(row) for row in rows]

    def _clean_row(self, row: SourceRow) -> CleanedItem:
        item = row.item
        if item is None:
            return CleanedItem(None)
        texts = list_texts(item)
        num_bytes = _count_bytes(texts)
        if row.url and self.url_rules:
            cleaned_url = clean(self.url_rules, row.url)
            if cleaned_url.text is None:
                return CleanedItem(None, cleaned_url.reason, num_bytes)
        reason = ""
        cleaned_texts = []
        for text in texts:
            cleaned = clean(self.rules, text)
            if cleaned.text is None:
                return CleanedItem(None, cleaned.reason, num_bytes)
            cleaned_texts.append(cleaned.text)
            if cleaned.reason:
                reason = CHANGED
        if self.filters and isinstance(item, Conversation):
            filtered = filters.apply(self.filters, replace_texts(item, cleaned_texts))
            if filtered.conversation is None:
                return CleanedItem(None, filtered.reason, num_bytes)
            item = filtered.conversation
            reason = reason or filtered.reason
            cleaned_texts = list_texts(item)
        return CleanedItem(
            encode_line(item, cleaned_texts),
            reason,
            num_bytes,
            _count_bytes(cleaned_texts),
            self._sketch("\n\n".join(cleaned_texts)),
        )

    def _sketch(self, text: str) -> Sketch | None:
        if self.dedup == "near":
            return make_sketch(text, self.near)
        if self.dedup == "exact":
            return Sketch(text_digest(fold_text(text)), _NO_SIGNATURE)
        return None


def clean_rows(
    rows: Iterable[SourceRow], worker: CleanWorker, num_workers: int = 0
) -> Generator[tuple[SourceRow, CleanedItem], None, None]:
    """Yield every row with its cleaned item, in order.

    Args:
        num_workers: the number of processes that clean; 0 cleans in this one.
    """
    batches = batched(rows, _count_characters, BATCH_CHARACTERS, BATCH_ROWS)
    for batch, cleaned in map_in_order(batches, worker.clean, num_workers):
        yield from zip(batch, cleaned, strict=True)


def list_texts(item: Item) -> list[str]:
    """Return an item's texts: a document's one, or those of all messages in order."""
    if isinstance(item, Document):
        return [item.text]
    texts = []
    for messages in _message_groups(item):
        texts += [message.content for message in messages]
    return texts


def replace_texts(item: C, texts: Iterable[str]) -> C:
    """Return a conversation or pair with the same roles and other texts."""
    remaining = iter(texts)
    groups = []
    for messages in _message_groups(item):
        group = [Message(message.role, next(remaining)) for message in messages]
        groups.append(tuple(group))
    return type(item)(*groups)


def encode_line(item: Item, texts: Sequence[str]) -> bytes:
    """Return an item with other texts as a line of JSONL.

    Example:
        >>> encode_line(Document("a.txt", "A ", chunk_index=2), ["A"])
        b'{"text":"A","name":"a.txt#2"}\\n'
    """
    if isinstance(item, Document):
        name = f"{item.name}#{item.chunk_index}" if item.chunk_index else item.name
        return msgspec.json.encode({"text": texts[0], "name": name}) + b"\n"
    return msgspec.json.encode(replace_texts(item, texts)) + b"\n"


def _message_groups(item: Conversation | PreferencePair) -> tuple[tuple[Message, ...], ...]:
    if isinstance(item, Conversation):
        return (item.messages,)
    return (item.prompt, item.chosen, item.rejected)


def _count_characters(row: SourceRow) -> int:
    if row.item is None:
        return 0
    return sum(map(len, list_texts(row.item)))


def _count_bytes(texts: Iterable[str]) -> int:
    return sum(map(_num_bytes, texts))


def _num_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
