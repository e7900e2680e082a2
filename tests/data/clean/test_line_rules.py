"""Rules over lines: what C4's take out, and FineWeb's thresholds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_fn.data.clean import line_rules
from slm_fn.data.clean.rules import Rule

EDITING = (
    line_rules.terminal_lines(),
    line_rules.line_words(),
    line_rules.line_phrases(),
    line_rules.javascript_lines(),
    line_rules.citations(),
)


@pytest.mark.parametrize(
    ("rule", "text", "left"),
    [
        (
            line_rules.terminal_lines(),
            'A. \nb\n\nC!\nd?\n"e"\nf...\n“g”\nh:',
            'A. \n\nC!\nd?\n"e"\n“g”',
        ),
        (line_rules.terminal_lines([":"]), "a.\nb:", "b:"),
        (
            line_rules.line_words(),
            "one two three four five\n1 2 3 4\n\n6",
            "one two three four five\n",
        ),
        (line_rules.line_words(2), "a b\nc", "a b"),
        (line_rules.javascript_lines(), "Please enable JavaScript.\nText.", "Text."),
        (
            line_rules.line_phrases(),
            "We USE cookies.\nOur Privacy Policy\nCookies are good.",
            "Cookies are good.",
        ),
        (line_rules.line_phrases(["Buy"]), "buy now\nor not", "or not"),
        (
            line_rules.citations(),
            "It is.[1][23] So[citation needed] is[edit] it[a].",
            "It is. So is it[a].",
        ),
        (line_rules.citations(), "So[[1]2] it is.", "So it is."),
        (line_rules.citations(["a.b"]), "x[a.b] y[acb] z[edit]", "x y[acb] z[edit]"),
        (line_rules.citations([]), "x[1] y[edit]", "x y[edit]"),
    ],
)
def test_what_a_rule_takes_out(rule: Rule, text: str, left: str) -> None:
    assert rule.apply(text) == left


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (EDITING[0], "no\n\n mark"),
        (EDITING[1], "a b c d\n\ne"),
        (EDITING[2], "cookie policy\n "),
        (EDITING[3], "javascript"),
        (EDITING[4], " [1]"),
    ],
)
def test_nothing_left_is_removed(rule: Rule, text: str) -> None:
    assert rule.apply(text) is None


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(
            [
                "[1]",
                "[",
                "1]",
                "edit]",
                "\n",
                " ",
                "a",
                ".",
                "one two three four five",
                "javascript",
                "é",
            ]
        )
    ),
    rule=st.sampled_from(EDITING),
)
def test_an_edited_text_is_part_of_the_old_one_and_stays(parts: list[str], rule: Rule) -> None:
    text = "".join(parts)
    left = rule.apply(text)
    if left is None:
        assert not text or left != text
        return
    rest = iter(text)
    assert all(character in rest for character in left)
    assert rule.apply(left) == left


@pytest.mark.parametrize(
    ("rule", "kept", "removed"),
    [
        (line_rules.line_endings(), "a.\n" * 13 + "a\n" * 87, "a.\n" * 12 + "a\n" * 88),
        (line_rules.line_endings(0.5, [":"]), "a:\nb:\nc", "a:\nb."),
        (
            line_rules.short_lines(),
            ("a" * 29 + "\n") * 66 + ("a" * 30 + "\n") * 34,
            ("a" * 29 + "\n") * 67 + ("a" * 30 + "\n") * 33,
        ),
        (line_rules.short_lines(0.5, 3), "abc\nabc\n\nab", "abc\nab"),
    ],
)
def test_a_rule_keeps_on_one_side_and_removes_on_the_other(
    rule: Rule, kept: str, removed: str
) -> None:
    assert rule.apply(kept) is kept
    assert rule.apply(removed) is None
