"""Splits cover any text, and cut where Hugging Face's library cuts."""

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from slm_fn.text import patterns

THEIRS = {name: pre_tokenizers.Split(tokenizers.Regex(found), "isolated") for name, found in patterns.PATTERNS.items()}
# Assigned characters: the libraries know Unicodes of different ages, and `regex` takes what is unassigned for letters.
texts = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cn", "Cs"]), max_size=8),
        st.sampled_from(["it's", " 'LL", "\r\n\r\n", "  a", " \n x", "12345", "!?\n", "\t"]),
    ),
    max_size=6,
).map("".join)


@pytest.mark.parametrize("name", patterns.PATTERNS)
@given(text=texts)
def test_chunks_are_those_of_the_tokenizer_and_join_to_the_text(name: str, text: str) -> None:
    chunks = patterns.split(patterns.PATTERNS[name])(text)
    assert "".join(chunks) == text
    assert chunks == [chunk for chunk, _ in THEIRS[name].pre_tokenize_str(text)]


@given(text=texts, sign=st.sampled_from(["<", "a"]))
def test_what_is_isolated_stands_alone(text: str, sign: str) -> None:
    chunks = patterns.split(patterns.PATTERNS["qwen2"], sign)(text + sign + text)
    assert "".join(chunks) == text + sign + text
    assert all(chunk == sign or sign not in chunk for chunk in chunks)


def test_names_and_expressions_are_resolved() -> None:
    assert patterns.resolve("llama3") == patterns.resolve("cl100k")
    own = r"\w+|[^\w\s]+|\s+"
    assert patterns.resolve(own) == own
    assert patterns.name(own) == "custom"
    assert patterns.name(patterns.resolve("gpt2")) == "gpt2"
    assert "GGUF" in patterns.closes(own)
    assert all(patterns.closes(found) == "" for found in patterns.PATTERNS.values())


@pytest.mark.parametrize(
    ("pattern", "message"), [("(", "does not compile"), (r"\w+", "leaves out"), (r"\w*|\s", "leaves")]
)
def test_what_is_no_split_is_said_plainly(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        patterns.resolve(pattern)
