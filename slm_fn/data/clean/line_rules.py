"""Rules about lines: C4's, which remove lines, and FineWeb's, which remove texts by their lines.

Invariant: an editing rule removes lines or marks and adds nothing; applied again, it changes
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

from slm_fn.data.clean.rules import Rule, keep_if, split_lines

TERMINAL_MARKS = (".", "!", "?", '"', "”")
"""C4's marks that end a line: a full stop, an exclamation or question mark, a closing quote."""

POLICY_PHRASES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
CITATION_MARKS = ("citation needed", "edit")


def keep_lines_if(name: str, predicate: Callable[[str], bool]) -> Rule:
    """Returns the rule that removes the lines for which the predicate is false.

    Blank lines stay, because they separate paragraphs. A text with nothing else left is removed.

    Args:
        name: the rule's name.
        predicate: a function of a line; a module's function or a partial of one, for pickling.
    """
    return Rule(name, partial(_filter_lines, predicate=predicate))


def _filter_lines(text: str, predicate: Callable[[str], bool]) -> str | None:
    lines = text.split("\n")
    kept = [line for line in lines if not line.strip() or predicate(line)]
    if len(kept) == len(lines):
        return text
    return "\n".join(kept) if any(map(str.strip, kept)) else None


def terminal_lines(marks: Sequence[str] = TERMINAL_MARKS) -> Rule:
    """Keeps only lines that end with one of these marks, and not with an ellipsis (C4)."""
    predicate = partial(_is_terminal, marks=tuple(marks))
    return keep_lines_if("terminal_lines", predicate)


def _is_terminal(line: str, marks: tuple[str, ...]) -> bool:
    line = line.rstrip()
    return line.endswith(marks) and not line.endswith("...")


def line_words(least: int = 5) -> Rule:
    """Keeps only lines of at least this many words (C4)."""
    predicate = partial(_has_words, least=least)
    return keep_lines_if("line_words", predicate)


def _has_words(line: str, least: int) -> bool:
    return len(line.split()) >= least


def line_phrases(phrases: Sequence[str] = POLICY_PHRASES, name: str = "line_phrases") -> Rule:
    """Removes lines that contain one of these phrases, in any case (C4).

    Args:
        phrases: by default what web pages write about cookies and privacy.
        name: the rule's name.
    """
    lowered = tuple(phrase.lower() for phrase in phrases)
    return Rule(name, partial(_remove_phrases, phrases=lowered))


def javascript_lines() -> Rule:
    """Removes lines that mention JavaScript, which ask the reader to enable it (C4)."""
    return line_phrases(("javascript",), "javascript_lines")


def _remove_phrases(text: str, phrases: tuple[str, ...]) -> str | None:
    if _lacks_phrases(text, phrases):
        return text
    return _filter_lines(text, partial(_lacks_phrases, phrases=phrases))


def _lacks_phrases(text: str, phrases: tuple[str, ...]) -> bool:
    lowered = text.lower()
    return not any(phrase in lowered for phrase in phrases)


def citations(marks: Sequence[str] = CITATION_MARKS) -> Rule:
    """Removes Wikipedia's marks in brackets: [1], [edit], [citation needed] (C4)."""
    alternatives = "|".join(map(re.escape, marks)) or r"\d+"
    return Rule("citations", partial(_remove_citations, alternatives=alternatives))


def _remove_citations(text: str, alternatives: str) -> str | None:
    if "[" not in text:
        return text
    before: str | None = None
    while before != text:  # removing one mark can make another: [[1]1]
        before = text
        text = re.sub(rf"\[(?:\d+|{alternatives})\]", "", text)
    return text if text.strip() else None


def line_endings(more_than: float = 0.12, marks: Sequence[str] = TERMINAL_MARKS) -> Rule:
    """Keeps texts in which more than this share of the lines ends with a mark (FineWeb)."""
    predicate = partial(_has_line_endings, more_than=more_than, marks=tuple(marks))
    return keep_if("line_endings", predicate)


def _has_line_endings(text: str, more_than: float, marks: tuple[str, ...]) -> bool:
    lines = split_lines(text)
    num_ended = sum(line.endswith(marks) for line in lines)
    return num_ended > more_than * len(lines)


def short_lines(less_than: float = 0.67, length: int = 30) -> Rule:
    """Keeps texts in which less than this share of the lines is shorter than `length` (FineWeb)."""
    predicate = partial(_has_few_short, less_than=less_than, length=length)
    return keep_if("short_lines", predicate)


def _has_few_short(text: str, less_than: float, length: int) -> bool:
    lines = split_lines(text)
    num_short = sum(len(line) < length for line in lines)
    return num_short < less_than * len(lines)
