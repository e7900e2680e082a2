"""Streams of bytes: complete characters as soon as possible, and nothing lost."""

from hypothesis import given, settings
from hypothesis import strategies as st

from slm_fn.text.utf8 import Utf8State, flush, push


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(
        st.one_of(st.binary(max_size=5), st.text(max_size=3).map(str.encode)), max_size=8
    ),
    cut=st.integers(1, 4),
)
def test_streamed_text_is_the_full_text(parts: list[bytes], cut: int) -> None:
    data, state, out = b"".join(parts), Utf8State(), ""
    for begin in range(0, len(data), cut):
        state, text = push(state, data[begin : begin + cut])
        out += text
    assert out + flush(state) == data.decode("utf-8", "replace")


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=20))
def test_a_stream_of_valid_bytes_emits_characters_as_soon_as_they_are_complete(
    text: str,
) -> None:
    state, out = Utf8State(), ""
    for character in text:
        for byte in character.encode():
            before = state
            state, got = push(state, bytes([byte]))
            assert push(before, bytes([byte])) == (state, got)
            out += got
        assert state == Utf8State()
    assert out == text
