"""infer/stream: the pieces join to the whole, however the bytes were split; stop strings cut exactly."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slm_fn.infer import stream
from slm_fn.infer.stream import Piece, Text

stop_lists = st.lists(st.text("abé", min_size=1, max_size=4), max_size=3)


def split(data, cuts):
    places = sorted({min(c, len(data)) for c in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(places)]


def reference(text, stops):
    """The text before the stop string that is complete first, found by reading one character after the other."""
    for end in range(len(text) + 1):
        begun = [len(text[:end]) - len(stop) for stop in stops if text[:end].endswith(stop)]
        if begun:
            return text[: min(begun)], True
    return text, False


def through(chunks, stops):
    state, out = Text(), []
    for chunk in chunks:
        state, text = stream.push(stops, state, chunk)
        out.append(text)
    return [*out, stream.flush(stops, state)], state.stopped


@given(st.binary(max_size=60), st.lists(st.integers(0, 60)))
def test_any_bytes_however_split_join_to_their_decoding(data, cuts):
    out, _ = through(split(data, cuts), [])
    assert "".join(out) == data.decode("utf-8", "replace")


@given(st.text("abé🙂", max_size=40), stop_lists, st.lists(st.integers(0, 90)))
@example("abcd", ["abcd", "bc"], [3])
@example("abcd", ["abcd", "bc"], [])
@example("aaab", ["aab"], [1, 2, 3])
def test_the_cut_is_exact_however_the_bytes_are_split(text, stops, cuts):
    out, stopped = through(split(text.encode(), cuts), stops)
    assert ("".join(out), stopped) == reference(text, stops)


@given(st.text("abé", max_size=30), stop_lists)
def test_no_more_is_held_than_may_become_a_stop(text, stops):
    state, seen = Text(), ""
    for character in text:
        state, _ = stream.push(stops, state, character.encode())
        seen += character
        if state.stopped:
            return
        suffixes = [seen[i:] for i in range(len(seen))]
        longest = next((s for s in suffixes if any(stop.startswith(s) and stop != s for stop in stops)), "")
        assert state.held == longest


def pieces(data, stop_ids=(), stops=()):
    return list(stream.pieces(iter(data), lambda token: bytes([token]), stop_ids, stops))


def test_the_last_piece_says_why_it_ended():
    assert pieces(b"ab") == [Piece("a", 1), Piece("b", 2), Piece("", 2, "length")]
    assert pieces(b"a!b", stop_ids=b"!") == [Piece("a", 1), Piece("", 2, "stop")]
    assert pieces(b"abcd", stops=["bc"]) == [Piece("a", 1), Piece("", 2), Piece("", 3, "stop")]
    assert pieces(b"ab", stops=["bc"]) == [Piece("a", 1), Piece("", 2), Piece("b", 2, "length")]
    assert pieces(b"") == [Piece("", 0, "length")]
    assert pieces("é".encode()) == [Piece("", 1), Piece("é", 2), Piece("", 2, "length")]
    assert pieces(b"\xc3") == [Piece("", 1), Piece("\ufffd", 1, "length")]


def test_no_token_is_asked_for_after_the_end():
    ids = iter(b"stop!more")
    assert list(stream.pieces(ids, lambda token: bytes([token]), (), ["p!"]))[-1].finish == "stop"
    assert bytes(ids) == b"more"


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="must not be empty"):
        stream.pieces(iter([]), lambda token: b"", (), ["a", ""])
