"""Rules that look at lines: C4's, which take some out, and FineWeb's, which judge a text by their shape.

Invariant: an editing rule takes lines or marks out and adds nothing; applied again, it finds nothing left to take.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from slm_fn.data.rules import Rule, lines_of, when

TERMINAL = (".", "!", "?", '"', "”")
"""C4's marks that end a line: a full stop, an exclamation or question mark, a closing quote."""

POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
MARKS = ("citation needed", "edit")


def _kept(name: str, keeps: Callable[..., bool], **arguments: Any) -> Rule:
    return Rule(name, partial(_without_lines, keeps=partial(keeps, **arguments)))


def _without_lines(text: str, keeps: Callable[[str], bool]) -> str | None:
    """The lines that are kept; blank ones stay, as they part paragraphs. None when nothing else is left."""
    lines = text.split("\n")
    left = [line for line in lines if not line.strip() or keeps(line)]
    if len(left) == len(lines):
        return text
    return "\n".join(left) if any(map(str.strip, left)) else None


def terminal_lines(marks: Sequence[str] = TERMINAL) -> Rule:
    """C4: only lines that end with one of these marks, and not with an ellipsis."""
    return _kept("terminal_lines", _terminal, marks=tuple(marks))


def _terminal(line: str, marks: tuple[str, ...]) -> bool:
    line = line.rstrip()
    return line.endswith(marks) and not line.endswith("...")


def line_words(least: int = 5) -> Rule:
    """C4: only lines of at least so many words."""
    return _kept("line_words", _enough_words, least=least)


def _enough_words(line: str, least: int) -> bool:
    return len(line.split()) >= least


def line_phrases(phrases: Sequence[str] = POLICIES, name: str = "line_phrases") -> Rule:
    """C4: no line with one of these in it, in any case; by default what web pages say of cookies and privacy."""
    return Rule(name, partial(_without_phrases, phrases=tuple(phrase.lower() for phrase in phrases)))


def javascript_lines() -> Rule:
    """C4: no line that speaks of JavaScript, which wants to be switched on."""
    return line_phrases(("javascript",), "javascript_lines")


def _without_phrases(text: str, phrases: tuple[str, ...]) -> str | None:
    lowered = text.lower()
    if not any(phrase in lowered for phrase in phrases):
        return text
    return _without_lines(text, partial(_unspoken, phrases=phrases))


def _unspoken(line: str, phrases: tuple[str, ...]) -> bool:
    lowered = line.lower()
    return not any(phrase in lowered for phrase in phrases)


def citations(marks: Sequence[str] = MARKS) -> Rule:
    """C4: Wikipedia's marks in brackets taken out: [1], [edit], [citation needed]."""
    return Rule("citations", partial(_without_citations, marks="|".join(map(re.escape, marks)) or r"\d+"))


def _without_citations(text: str, marks: str) -> str | None:
    if "[" not in text:
        return text
    before = ""
    while before != text:  # [[1]1] makes a new one
        before, text = text, re.sub(rf"\[(?:\d+|{marks})\]", "", text)
    return text if text.strip() else None


def line_endings(more_than: float = 0.12, marks: Sequence[str] = TERMINAL) -> Rule:
    """FineWeb: more than this share of the lines ends with a mark."""
    return when("line_endings", _ended, more_than=more_than, marks=tuple(marks))


def _ended(text: str, more_than: float, marks: tuple[str, ...]) -> bool:
    lines = lines_of(text)
    return sum(line.endswith(marks) for line in lines) > more_than * len(lines)


def short_lines(less_than: float = 0.67, length: int = 30) -> Rule:
    """FineWeb: less than this share of the lines is shorter than `length` characters."""
    return when("short_lines", _long_enough, less_than=less_than, length=length)


def _long_enough(text: str, less_than: float, length: int) -> bool:
    lines = lines_of(text)
    return sum(len(line) < length for line in lines) < less_than * len(lines)
