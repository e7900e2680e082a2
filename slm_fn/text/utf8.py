"""Incremental UTF-8 decoding that never splits a character: push bytes, flush at the end.

Invariant: the pushed texts and the flushed one, joined, are what decoding all bytes at once gives.
"""

from __future__ import annotations

import codecs
from typing import NamedTuple


class Utf8State(NamedTuple):
    """State of an incremental UTF-8 decoder: the first bytes of a character that is incomplete."""

    pending: bytes = b""


def push(state: Utf8State, data: bytes) -> tuple[Utf8State, str]:
    """Decodes more bytes; returns the next state and the characters that are complete now.

    Args:
        state: the state after the bytes before these; `Utf8State()` at the start.
        data: the next bytes; bytes that are not UTF-8 become U+FFFD.

    Example:
        >>> state, text = push(Utf8State(), "é".encode()[:1])
        >>> text, push(state, "é".encode()[1:])[1]
        ('', 'é')
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.setstate((state.pending, 0))
    text = decoder.decode(data)
    pending, _ = decoder.getstate()
    return Utf8State(pending), text


def flush(state: Utf8State) -> str:
    """Returns the text of the bytes still pending at the end of a stream: U+FFFD, or nothing."""
    return state.pending.decode("utf-8", "replace")
