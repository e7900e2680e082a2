"""Cleaning as rules: each a pure `str -> str | None` with a name, so that what it removed can be counted.

A rule that removes returns None, one that edits returns another text, and one that edits everything away removes. The
rules after Gopher, C4 and FineWeb live in `quality`, `repetition` and `weblines`; YAML names them through `RULES`.
A rule over a record's url is the same thing over another string: `build(specs, URL_RULES)`, then
`clean(url_rules, url)` before the text is looked at. `text.normalize` is in another room and arrives as an argument:
`Rule("normalize", normalize)`.

Invariant: a rule is picklable (partials of a module's functions), and the same text always meets the same fate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

CHANGED = "changed"


class Rule(NamedTuple):
    """What it is counted as, and what it makes of a text: the same, another, or None."""

    name: str
    apply: Callable[[str], str | None]


class Cleaned(NamedTuple):
    """The text, or None; and why: the rule that removed it, `CHANGED` where a rule edited it, else an empty string."""

    text: str | None
    why: str


def clean(rules: Sequence[Rule], text: str) -> Cleaned:
    """What the rules, one after the other, make of a text; the first that removes it ends the matter.

    Example:
        >>> clean([Rule("strip", str.strip)], " a ")
        Cleaned(text='a', why='changed')
    """
    left = text
    for rule in rules:
        result = rule.apply(left)
        if not result:
            return Cleaned(None, rule.name)
        left = result
    return Cleaned(left, "" if left == text else CHANGED)
