"""New tokens to pieces of text while they come: whole characters only, cut exactly at stop strings.

Invariant: the pieces depend on the bytes and the stop strings, not on how the bytes were split into tokens; nothing is
held back but an unfinished character and the longest suffix that may yet become a stop string.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Literal, NamedTuple

from slm_fn.text import utf8
from slm_fn.text.utf8 import Utf8

Finish = Literal["stop", "length"]


class Text(NamedTuple):
    """A text being written: bytes of an unfinished character, text that may begin a stop string, whether one came."""

    utf8: Utf8 = Utf8()
    held: str = ""
    stopped: bool = False


class Piece(NamedTuple):
    """What one token added to the text, how many tokens there are so far, and in the last piece why it ended."""

    text: str
    num_tokens: int
    finish: Finish | None = None


def push(stops: Sequence[str], state: Text, data: bytes) -> tuple[Text, str]:
    """Take the bytes of a token; return the text that is certain now.

    Of several stop strings the one that is complete first counts; the text ends where it begins.

    Example:
        >>> state, text = push(["END"], Text(), b"one E")
        >>> text
        'one '
        >>> push(["END"], state, b"ND two")
        (Text(utf8=Utf8(pending=b''), held='', stopped=True), '')
    """
    decoder, new = utf8.push(state.utf8, data)
    return _take(stops, state._replace(utf8=decoder), new)


def flush(stops: Sequence[str], state: Text) -> str:
    """What is left at the end of the tokens: held text after all, and U+FFFD for an unfinished character."""
    rest, text = _take(stops, state, utf8.flush(state.utf8))
    return text + rest.held


def _take(stops: Sequence[str], state: Text, new: str) -> tuple[Text, str]:
    if state.stopped:
        return state, ""
    text = state.held + new
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    if found:
        return Text(stopped=True), text[: min(found)[1]]
    keep = _beginning(stops, text)
    return Text(state.utf8, text[len(text) - keep :]), text[: len(text) - keep]


def _beginning(stops: Sequence[str], text: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of a stop string."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    ends = (n for n in range(min(longest, len(text)), 0, -1) if any(stop.startswith(text[-n:]) for stop in stops))
    return next(ends, 0)


def pieces(
    ids: Iterator[int], token_bytes: Callable[[int], bytes], stop_ids: Collection[int] = (), stops: Sequence[str] = ()
) -> Iterator[Piece]:
    """One piece per token; the last one says `stop` (a stop token or string) or `length` (the tokens ran out).

    A stop token adds no text. Nothing more is asked of `ids` once the text has ended.

    Raises:
        ValueError: a stop string is empty.

    Example:
        >>> [piece.text for piece in pieces(iter([104, 105]), lambda i: bytes([i]))]
        ['h', 'i', '']
    """
    if "" in stops:
        raise ValueError("a stop string must not be empty")
    return _pieces(ids, token_bytes, stop_ids, stops)


def _pieces(
    ids: Iterator[int], token_bytes: Callable[[int], bytes], stop_ids: Collection[int], stops: Sequence[str]
) -> Iterator[Piece]:
    state, count = Text(), 0
    for count, token in enumerate(ids, 1):
        if token in stop_ids:
            yield Piece(flush(stops, state), count, "stop")
            return
        state, text = push(stops, state, token_bytes(token))
        yield Piece(text, count, "stop" if state.stopped else None)
        if state.stopped:
            return
    yield Piece(flush(stops, state), count, "length")
