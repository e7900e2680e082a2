"""Normalization: every clause of its docstring, over all of Unicode."""

import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_fn.text.normalize import normalize

EVERY = [
    c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) not in ("Cn", "Co")
]
"""All characters except unassigned ones and those of private use."""
ALPHABETS = ("unicode", "ascii", "transliterate")
TRICKY = (
    "\r\n\u2028\u00a0\u00ad\u200b\u200d\ufeff\x00\x85\ud800\udc00\u0301\u030c\u0307JİΣſßﬁ½㎏ㅏ가ﷺ\u1100\u1161\u11a8"
    "aA .\u0345\u0f77"
)
TEXTS = st.text(st.one_of(st.characters(), st.sampled_from(TRICKY)), max_size=30)


@pytest.mark.parametrize(
    ("text", "unicode", "ascii", "transliterate"),
    [
        ("a\r\nb\rc\n\rd", "a\nb\nc\n\nd", "a\nb\nc\n\nd", "a\nb\nc\n\nd"),
        ("é\r\nb\rc", "é\nb\nc", "\nb\nc", "e\nb\nc"),
        ("a\u2028b\u2029c", "a\nb\nc", "a\nb\nc", "a\nb\nc"),
        ("a\x00b\x0bc\x7fd\te", "abcd\te", "abcd\te", "abcd\te"),
        ("é\x00b\x0cc\x85d\te", "ébcd\te", "bcd\te", "ebcd\te"),
        ("a\u00a0\u3000\u1680\u2009b", "a    b", "a    b", "a    b"),
        ("\ufeffa\u200bb\u00adc\u2060d\u202ee", "abcde", "abcde", "abcde"),
        ("👩\u200d🌾 می\u200cخواهم", "👩\u200d🌾 می\u200cخواهم", " ", " "),
        ("ﬁne ２ cafe\u0301 Å", "fine 2 café Å", "fine 2 caf ", "fine 2 cafe A"),
        ("“don’t” – straße…", "“don’t” – straße...", "dont  strae...", '"don\'t" - strasse...'),
        ("a\ud800b", "a\ufffdb", "ab", "ab"),
        ("½ km²", "1⁄2 km2", "12 km2", "1/2 km2"),
    ],
)
def test_every_clause(text: str, unicode: str, ascii: str, transliterate: str) -> None:
    assert [normalize(text, alphabet) for alphabet in ALPHABETS] == [unicode, ascii, transliterate]


def test_case_is_kept_by_default() -> None:
    assert normalize("Ab É") == "Ab É"
    assert normalize("Ab É", lowercase=True) == "ab é"
    assert normalize("Ab", lowercase=True) == "ab"
    assert normalize("J\u030c𝐀", lowercase=True) == "ǰa"


@settings(max_examples=800, deadline=None)
@given(text=TEXTS, alphabet=st.sampled_from(ALPHABETS), lowercase=st.booleans())
def test_normalization_is_idempotent(text: str, alphabet: str, lowercase: bool) -> None:
    once = normalize(text, alphabet, lowercase)
    assert normalize(once, alphabet, lowercase) == once
    once.encode()


@pytest.mark.parametrize("apart", ["", "a"], ids=["adjacent", "apart"])
@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_all_of_unicode_is_normalized(alphabet: str, lowercase: bool, apart: str) -> None:
    result = normalize(apart.join(EVERY), alphabet, lowercase)
    assert normalize(result, alphabet, lowercase) == result
    characters = set(result)
    assert {c for c in characters if unicodedata.category(c) in ("Cc", "Zs", "Zl", "Zp", "Cs")} == {
        "\n",
        "\t",
        " ",
    }
    if alphabet == "unicode":
        assert unicodedata.is_normalized("NFKC", result)
        assert {"\u200c", "\u200d", "中", "é", "\ufffd"} <= characters
        assert not characters & set(
            "\ufeff\u00ad\u200b\u200e\u200f\u202a\u202e\u2060\u2066\u2069\u180e"
        )
    else:
        capitals = set("ABCDEFGHIJKLMNOPQRSTUVWXYZ") if lowercase else set()
        assert characters == {*map(chr, range(32, 127)), "\n", "\t"} - capitals


def test_clean_ascii_is_not_even_copied() -> None:
    text = "plain text,\nof two lines\tand a tab" * 10
    assert all(normalize(text, alphabet) is text for alphabet in ALPHABETS)
