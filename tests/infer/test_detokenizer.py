"""infer/detokenizer.py: the deltas join to the full text; stop strings cut exactly."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slm_fn.infer import detokenizer
from slm_fn.infer.detokenizer import DetokenizerState, TextDelta

stop_lists = st.lists(st.text("abé", min_size=1, max_size=4), max_size=3)


def split(data, cuts):
    ends = sorted({min(c, len(data)) for c in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(ends)]


def reference(text, stops):
    """The text before the stop string that is complete first, by trying every length."""
    for end in range(len(text) + 1):
        starts = [len(text[:end]) - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


def detokenize(chunks, stops):
    state = DetokenizerState()
    out = []
    for chunk in chunks:
        state, text = detokenizer.push(stops, state, chunk)
        out.append(text)
    return [*out, detokenizer.flush(stops, state)], state.is_stopped


@given(st.binary(max_size=60), st.lists(st.integers(0, 60)))
def test_any_bytes_however_split_join_to_their_decoding(data, cuts):
    out, _ = detokenize(split(data, cuts), [])
    assert "".join(out) == data.decode("utf-8", "replace")


@given(st.text("abé🙂", max_size=40), stop_lists, st.lists(st.integers(0, 90)))
@example("abcd", ["abcd", "bc"], [3])
@example("abcd", ["abcd", "bc"], [])
@example("aaab", ["aab"], [1, 2, 3])
def test_the_cut_is_exact_however_the_bytes_are_split(text, stops, cuts):
    out, stopped = detokenize(split(text.encode(), cuts), stops)
    assert ("".join(out), stopped) == reference(text, stops)


@given(st.text("abé", max_size=30), stop_lists)
def test_only_a_possible_stop_string_is_held_back(text, stops):
    state = DetokenizerState()
    received = ""
    for character in text:
        state, _ = detokenizer.push(stops, state, character.encode())
        received += character
        if state.is_stopped:
            return
        suffixes = [received[i:] for i in range(len(received))]
        longest = next(
            (s for s in suffixes if any(stop.startswith(s) and stop != s for stop in stops)), ""
        )
        assert state.held == longest


def deltas_of(data, stop_ids=(), stops=()):
    return list(
        detokenizer.stream_deltas(iter(data), lambda token: bytes([token]), stop_ids, stops)
    )


def test_the_last_delta_has_the_finish_reason():
    assert deltas_of(b"ab") == [TextDelta("a", 1), TextDelta("b", 2), TextDelta("", 2, "length")]
    assert deltas_of(b"a!b", stop_ids=b"!") == [TextDelta("a", 1), TextDelta("", 2, "stop")]
    assert deltas_of(b"abcd", stops=["bc"]) == [
        TextDelta("a", 1),
        TextDelta("", 2),
        TextDelta("", 3, "stop"),
    ]
    assert deltas_of(b"ab", stops=["bc"]) == [
        TextDelta("a", 1),
        TextDelta("", 2),
        TextDelta("b", 2, "length"),
    ]
    assert deltas_of(b"") == [TextDelta("", 0, "length")]
    assert deltas_of("é".encode()) == [
        TextDelta("", 1),
        TextDelta("é", 2),
        TextDelta("", 2, "length"),
    ]
    assert deltas_of(b"\xc3") == [TextDelta("", 1), TextDelta("\ufffd", 1, "length")]


def test_no_token_is_read_after_the_end():
    ids = iter(b"stop!more")
    assert (
        list(detokenizer.stream_deltas(ids, lambda token: bytes([token]), (), ["p!"]))[-1].finish
        == "stop"
    )
    assert bytes(ids) == b"more"


def test_an_empty_stop_string_is_rejected():
    with pytest.raises(ValueError, match="must not be empty"):
        detokenizer.stream_deltas(iter([]), lambda token: b"", (), ["a", ""])
