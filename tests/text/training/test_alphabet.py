"""The most frequent characters, up to a share or a number."""

import pytest

from slm_fn.text.training import alphabet


def test_coverage_and_number_bound_the_alphabet() -> None:
    counts = alphabet.count_characters({"aab": 10, "c": 1, "dd": 2})
    assert counts == {"a": 20, "b": 10, "d": 4, "c": 1}
    assert alphabet.select_characters(counts) == ["a", "b", "c", "d"]
    assert alphabet.select_characters(counts, coverage=30 / 35) == ["a", "b"]
    assert alphabet.select_characters(counts, coverage=30.1 / 35) == ["a", "b", "d"]
    assert alphabet.select_characters(counts, max_characters=1) == ["a"]
    assert alphabet.select_characters({"b": 1, "a": 1}, max_characters=1) == ["a"]


def test_ascii_is_what_a_keyboard_types() -> None:
    assert len(alphabet.ASCII_CHARACTERS) == 97
    assert list(alphabet.ASCII_CHARACTERS) == sorted(alphabet.ASCII_CHARACTERS)
    assert {"\t", "\n", " ", "~", "A"} <= set(alphabet.ASCII_CHARACTERS)


@pytest.mark.parametrize("coverage", [0.0, -1.0, 1.1])
def test_coverage_is_a_share(coverage: float) -> None:
    with pytest.raises(ValueError, match="coverage"):
        alphabet.select_characters({"a": 1}, coverage)
