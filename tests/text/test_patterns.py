"""Splits cover any text, and agree with Hugging Face's library."""

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from slm_fn.text import patterns

HF_SPLITS = {
    name: pre_tokenizers.Split(tokenizers.Regex(expression), "isolated")
    for name, expression in patterns.SPLIT_PATTERNS.items()
}
# Assigned characters only: the libraries implement different versions of Unicode, and `regex`
# treats unassigned code points as letters.
texts = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cn", "Cs"]), max_size=8),
        st.sampled_from(["it's", " 'LL", "\r\n\r\n", "  a", " \n x", "12345", "!?\n", "\t"]),
    ),
    max_size=6,
).map("".join)


@pytest.mark.parametrize("name", patterns.SPLIT_PATTERNS)
@given(text=texts)
def test_chunks_are_those_of_the_tokenizer_and_join_to_the_text(name: str, text: str) -> None:
    chunks = patterns.make_splitter(patterns.SPLIT_PATTERNS[name])(text)
    assert "".join(chunks) == text
    assert chunks == [chunk for chunk, _ in HF_SPLITS[name].pre_tokenize_str(text)]


@given(text=texts, sign=st.sampled_from(["<", "a"]))
def test_an_isolated_sign_is_always_a_chunk(text: str, sign: str) -> None:
    chunks = patterns.make_splitter(patterns.SPLIT_PATTERNS["qwen2"], sign)(text + sign + text)
    assert "".join(chunks) == text + sign + text
    assert all(chunk == sign or sign not in chunk for chunk in chunks)


def test_names_and_expressions_are_resolved() -> None:
    assert patterns.resolve("llama3") == patterns.resolve("cl100k")
    own = r"\w+|[^\w\s]+|\s+"
    assert patterns.resolve(own) == own
    assert patterns.pattern_name(own) == "custom"
    assert patterns.pattern_name(patterns.resolve("gpt2")) == "gpt2"
    assert "GGUF" in patterns.export_warning(own)
    assert all(
        patterns.export_warning(expression) == "" for expression in patterns.SPLIT_PATTERNS.values()
    )


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(", "does not compile"), (r"\w+", "leaves out"), (r"\w*|\s", "leaves")],
)
def test_invalid_splits_are_rejected(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        patterns.resolve(pattern)
