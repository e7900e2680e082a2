"""Rules over a text, each at both sides of its threshold."""

import pytest

from slm_fn.data.clean import rules
from slm_fn.data.clean.rules import Rule

W = "the word and "  # three words of 13 characters
LIST = "\n".join(["- item"] * 9 + ["end"])


@pytest.mark.parametrize(
    ("rule", "kept", "removed"),
    [
        (rules.length(3, 5), ["abc", "abcde"], ["ab", "abcdef"]),
        (rules.length(), ["a", "a" * 10**6], [""]),
        (rules.word_count(), ["a " * 50, "a " * 100_000], ["a " * 49, "a " * 100_001]),
        (
            rules.word_length(),
            ["abc", "a" * 10, "ab abcd"],
            ["abc ab", "a" * 10 + " " + "a" * 11, " "],
        ),
        (
            rules.symbols(),
            ["# " + "a " * 9, "... " + "a " * 9, "#...… " + "a " * 19],
            ["# " + "a " * 8, "a…... " + "a " * 10],
        ),
        (rules.bullets(), [LIST], [LIST.replace("end", "• end"), "* a"]),
        (
            rules.ellipses(),
            ["a...\n" * 2 + "b …\n" + "c\n" * 7],
            ["a...\n" * 2 + "b …\n\n" + "c\n" * 6],
        ),
        (rules.letters(), ["a b é d1 5", "don't 日本 x- -y %"], ["a b é 1 5", "_ a b c 5_5"]),
        (rules.stop_words(), ["The cat OF", "to be"], ["the the The cat", "other band"]),
        (rules.lorem_ipsum(), ["lorem et ipsum"], ["Lorem Ipsum dolor"]),
        (rules.curly_braces(), ["(a) [b] c}"], ["f() { }"]),
        (
            rules.sentences(),
            ["One. Two! (Three?) four", 'A." B.\nC.', "一。二。三。"],
            ["1.2.3 One. Two!", "a.b.c."],
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Rule) else "",
)
def test_a_rule_keeps_on_one_side_and_removes_on_the_other(
    rule: Rule, kept: list[str], removed: list[str]
) -> None:
    for text in kept:
        assert rule.apply(text) is text, text
    for text in removed:
        assert rule.apply(text) is None, text


def test_every_threshold_is_an_argument() -> None:
    assert rules.word_count(1, 1).apply("a") == "a"
    assert rules.word_length(1.0, 1.0).apply("a b") == "a b"
    assert rules.symbols(0.5).apply("# a") == "# a"
    assert rules.bullets(1.0).apply("- a") == "- a"
    assert rules.ellipses(1.0).apply("a...") == "a..."
    assert rules.letters(0.0).apply("1") == "1"
    assert rules.stop_words(1, ["DER"]).apply("der Hund") == "der Hund"
    assert rules.sentences(0).apply("a") == "a"
