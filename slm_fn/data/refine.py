"""One item of a corpus refined: normalised and cleaned, sketched for duplicates, written as a line of JSONL.

A text that comes in pieces is refined piece by piece, and each piece is a line of its own. In a conversation or
a pair every message goes through the rules, and one that a rule removes takes all along; filters come behind.

Invariant: pure and picklable, so that a worker process gives what this one would.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Literal, NamedTuple, TypeVar

import msgspec
import numpy as np

from slm_fn.data import filters
from slm_fn.data.clean import CHANGED, clean
from slm_fn.data.filters import Filter
from slm_fn.data.intake import Item, Row
from slm_fn.data.minhash import DedupConfig, Sketch, digest, fold, sketch
from slm_fn.data.rules import Rule
from slm_fn.data.sources import Conversation, Document, Message, Preference
from slm_fn.data.workers import batched, in_order

BATCH_CHARACTERS, BATCH_ROWS = 1 << 20, 512
"""What is handed to a worker at a time."""
NO_SIGNATURE = np.zeros(0, np.uint8)

Talk = TypeVar("Talk", bound=Conversation | Preference)


class Refined(NamedTuple):
    """What became of an item: its line, or none and why; the bytes of text it had and has; what tells it from others.

    `why` is the rule that removed it, or `CHANGED` where one edited it. An item that was none is None all through.
    """

    line: bytes | None
    why: str = ""
    size: int = 0
    left: int = 0
    sketch: Sketch | None = None


class Refine(NamedTuple):
    """The rules of one source, for its texts and their addresses, and how duplicates are told."""

    rules: tuple[Rule, ...]
    url_rules: tuple[Rule, ...] = ()
    dedup: Literal["none", "exact", "near"] = "none"
    near: DedupConfig = DedupConfig()
    filters: tuple[Filter, ...] = ()

    def apply(self, rows: Sequence[Row]) -> list[Refined]:
        """What becomes of each row."""
        return [self._one(row) for row in rows]

    def _one(self, row: Row) -> Refined:
        if row.item is None:
            return Refined(None)
        texts = texts_of(row.item)
        size = sum(map(_size, texts))
        if row.url and self.url_rules:
            judged = clean(self.url_rules, row.url)
            if judged.text is None:
                return Refined(None, judged.why, size)
        cleaned = [clean(self.rules, text) for text in texts]
        left = [found.text for found in cleaned if found.text is not None]
        if len(left) < len(texts):
            return Refined(None, next(found.why for found in cleaned if found.text is None), size)
        item, why = row.item, CHANGED if any(found.why for found in cleaned) else ""
        if self.filters and isinstance(item, Conversation):
            kept, reason = filters.apply(self.filters, retold(item, left))
            if kept is None:
                return Refined(None, reason, size)
            item, why, left = kept, why or reason, texts_of(kept)
        return Refined(line(item, left), why, size, sum(map(_size, left)), self._sketch("\n\n".join(left)))

    def _sketch(self, text: str) -> Sketch | None:
        if self.dedup == "near":
            return sketch(text, self.near)
        if self.dedup == "exact":
            return Sketch(digest(fold(text)), NO_SIGNATURE)
        return None


def refined(rows: Iterable[Row], refine: Refine, workers: int = 0) -> Generator[tuple[Row, Refined], None, None]:
    """Every row with what became of it, in order; cleaned in this process (0) or in spawned ones."""
    for batch, found in in_order(batched(rows, _characters, BATCH_CHARACTERS, BATCH_ROWS), refine.apply, workers):
        yield from zip(batch, found, strict=True)


def _characters(row: Row) -> int:
    return sum(map(len, texts_of(row.item))) if row.item is not None else 0


def texts_of(item: Item) -> list[str]:
    """What is said in an item."""
    return [item.text] if isinstance(item, Document) else [m.content for part in _parts(item) for m in part]


def retold(item: Talk, texts: Sequence[str]) -> Talk:
    """The same turns with other texts."""
    left = iter(texts)
    return type(item)(*[tuple(Message(m.role, next(left)) for m in part) for part in _parts(item)])


def _parts(item: Conversation | Preference) -> tuple[tuple[Message, ...], ...]:
    return (item.messages,) if isinstance(item, Conversation) else (item.prompt, item.chosen, item.rejected)


def line(item: Item, texts: Sequence[str]) -> bytes:
    """An item with other texts as a line of JSONL.

    Example:
        >>> line(Document("a.txt", "A ", part=2), ["A"])
        b'{"text":"A","name":"a.txt#2"}\\n'
    """
    row: object
    if isinstance(item, Document):
        row = {"text": texts[0], "name": f"{item.name}#{item.part}" if item.part else item.name}
    else:
        row = retold(item, texts)
    return msgspec.json.encode(row) + b"\n"


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
