"""Detokenizing a stream: complete characters only, and text that ends exactly at a stop string.

Invariant: the text depends on the bytes and the stop strings, not on how the bytes were split into
tokens; only an incomplete character and the longest suffix that may become a stop string are held
back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from slm_fn.infer.request import Finish
from slm_fn.text import utf8
from slm_fn.text.utf8 import Utf8State


class DetokenizerState(NamedTuple):
    """The state of a text that is being generated.

    Attributes:
        utf8: bytes of an incomplete character.
        held: text that may be the beginning of a stop string.
        is_stopped: whether a stop string has occurred.
    """

    utf8: Utf8State = Utf8State()
    held: str = ""
    is_stopped: bool = False


class TextDelta(NamedTuple):
    """The text that one token added.

    Attributes:
        text: what is certain since the delta before.
        num_tokens: tokens so far.
        finish: the finish reason, in the last delta only.
    """

    text: str
    num_tokens: int
    finish: Finish | None = None


def push(
    stops: Sequence[str],
    state: DetokenizerState,
    data: bytes,
) -> tuple[DetokenizerState, str]:
    """Adds the bytes of a token and returns the text that is certain now.

    Of several stop strings, the one that is complete first counts; the text ends where it begins.

    Args:
        stops: the stop strings.
        state: the state before the token.
        data: the bytes of the token.

    Example:
        >>> state, text = push(["END"], DetokenizerState(), b"one E")
        >>> text
        'one '
        >>> state, text = push(["END"], state, b"ND two")
        >>> text, state.is_stopped
        ('', True)
    """
    utf8_state, new_text = utf8.push(state.utf8, data)
    return _append(stops, state._replace(utf8=utf8_state), new_text)


def flush(stops: Sequence[str], state: DetokenizerState) -> str:
    """Returns the text left at the end: the held text, and U+FFFD for an incomplete character."""
    end_state, text = _append(stops, state, utf8.flush(state.utf8))
    return text + end_state.held


def _append(
    stops: Sequence[str],
    state: DetokenizerState,
    new_text: str,
) -> tuple[DetokenizerState, str]:
    if state.is_stopped:
        return state, ""
    text = state.held + new_text
    matches = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    if matches:
        _, start = min(matches)
        return DetokenizerState(is_stopped=True), text[:start]
    num_certain = len(text) - _length_of_possible_stop(stops, text)
    return DetokenizerState(state.utf8, text[num_certain:]), text[:num_certain]


def _length_of_possible_stop(stops: Sequence[str], text: str) -> int:
    """Length of the longest suffix of a text that is a proper prefix of a stop string."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0


def stream_deltas(
    ids: Iterator[int],
    token_bytes: Callable[[int], bytes],
    stop_ids: Collection[int] = (),
    stops: Sequence[str] = (),
) -> Iterator[TextDelta]:
    """Returns one text delta per token; the last one holds the finish reason.

    The reason is `stop` (a stop token or a stop string) or `length` (the tokens ended). No token is
    read after the text has ended.

    Args:
        ids: the generated tokens.
        token_bytes: the bytes of a token id.
        stop_ids: tokens that end the text and add nothing to it.
        stops: strings that end the text and are no part of it.

    Raises:
        ValueError: a stop string is empty.

    Example:
        >>> [delta.text for delta in stream_deltas(iter([104, 105]), lambda i: bytes([i]))]
        ['h', 'i', '']
    """
    if "" in stops:
        raise ValueError("a stop string must not be empty")
    return _stream_deltas(ids, token_bytes, stop_ids, stops)


def _stream_deltas(
    ids: Iterator[int],
    token_bytes: Callable[[int], bytes],
    stop_ids: Collection[int],
    stops: Sequence[str],
) -> Iterator[TextDelta]:
    state = DetokenizerState()
    num_tokens = 0
    for token in ids:
        num_tokens += 1
        if token in stop_ids:
            yield TextDelta(flush(stops, state), num_tokens, "stop")
            return
        state, text = push(stops, state, token_bytes(token))
        yield TextDelta(text, num_tokens, "stop" if state.is_stopped else None)
        if state.is_stopped:
            return
    yield TextDelta(flush(stops, state), num_tokens, "length")
