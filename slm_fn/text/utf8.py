"""A stream of bytes turned into text that splits no character: push bytes, get what is complete, flush at the end.

Invariant: the texts that were pushed out and flushed, joined, are what decoding all the bytes at once gives.
"""

from __future__ import annotations

import codecs
from typing import NamedTuple


class Utf8(NamedTuple):
    """A stream of bytes turned into text: what is held back is the beginning of a character whose end has not come."""

    pending: bytes = b""


def push(state: Utf8, data: bytes) -> tuple[Utf8, str]:
    """Take more bytes; return the whole characters that are complete now.

    All the pushed texts and the flushed one, joined, are what decoding all the bytes at once gives.

    Example:
        >>> state, text = push(Utf8(), "é".encode()[:1])
        >>> text, push(state, "é".encode()[1:])[1]
        ('', 'é')
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.setstate((state.pending, 0))
    text = decoder.decode(data)
    return Utf8(decoder.getstate()[0]), text


def flush(state: Utf8) -> str:
    """What the end of the stream makes of the bytes held back: U+FFFD, or nothing."""
    return state.pending.decode("utf-8", "replace")
