"""The most frequent characters, up to a share or a number."""

import pytest

from slm_fn.text import alphabet


def test_coverage_and_number_bound_the_alphabet() -> None:
    found = alphabet.frequencies({"aab": 10, "c": 1, "dd": 2})
    assert found == {"a": 20, "b": 10, "d": 4, "c": 1}
    assert alphabet.choose(found) == ["a", "b", "c", "d"]
    assert alphabet.choose(found, coverage=30 / 35) == ["a", "b"]
    assert alphabet.choose(found, coverage=30.1 / 35) == ["a", "b", "d"]
    assert alphabet.choose(found, most=1) == ["a"]
    assert alphabet.choose({"b": 1, "a": 1}, most=1) == ["a"]


def test_ascii_is_what_a_keyboard_writes() -> None:
    assert len(alphabet.ASCII) == 97
    assert list(alphabet.ASCII) == sorted(alphabet.ASCII)
    assert {"\t", "\n", " ", "~", "A"} <= set(alphabet.ASCII)


@pytest.mark.parametrize("coverage", [0.0, -1.0, 1.1])
def test_a_share_is_a_share(coverage: float) -> None:
    with pytest.raises(ValueError, match="coverage"):
        alphabet.choose({"a": 1}, coverage)
