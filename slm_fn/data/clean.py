"""Cleaning as composed rules, built by name from YAML, so that what each removed can be counted.

A rule that removes returns None, one that edits returns another text, and one that edits everything away removes. The
rules after Gopher, C4 and FineWeb are in `rules`, `lines` and `repetition`. A rule over a record's url is the same
thing over another string: `build(specs, URL_RULES)`, and `clean(url_rules, url)` before the text is looked at.
`text.normalize` is in another room and arrives as an argument: `Rule("normalize", normalize)`.

Invariant: the first rule that removes a text ends the matter, so counts of removed and kept texts add up to all.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, get_type_hints

import msgspec

from slm_fn.data import lines, repetition, rules
from slm_fn.data.rules import Rule

CHANGED = "changed"

RULES: dict[str, Callable[..., Rule]] = {
    constructor.__name__: constructor
    for constructor in (
        rules.length,
        rules.word_count,
        rules.word_length,
        rules.symbols,
        rules.bullets,
        rules.ellipses,
        rules.letters,
        rules.stop_words,
        rules.lorem_ipsum,
        rules.curly_braces,
        rules.sentences,
        rules.banned_words,
        lines.terminal_lines,
        lines.line_words,
        lines.line_phrases,
        lines.javascript_lines,
        lines.citations,
        lines.line_endings,
        lines.short_lines,
        repetition.duplicate_lines,
        repetition.duplicate_paragraphs,
        repetition.duplicate_line_characters,
        repetition.duplicate_paragraph_characters,
        repetition.top_ngram,
        repetition.duplicate_ngrams,
    )
}
"""What YAML can name over a text."""

URL_RULES: dict[str, Callable[..., Rule]] = {"hosts": rules.hosts, "url_parts": rules.url_parts}
"""What YAML can name over a record's url."""

Spec = str | Mapping[str, Any]
"""A rule's or a preset's name, or one rule's name with its arguments: `{length: {least: 200}}`."""

_QUALITY: tuple[Spec, ...] = ("word_count", "word_length", "symbols", "bullets", "ellipses", "letters", "stop_words")
_REPETITION: tuple[Spec, ...] = (
    "duplicate_lines",
    "duplicate_paragraphs",
    "duplicate_line_characters",
    "duplicate_paragraph_characters",
    *({"top_ngram": {"n": n}} for n in repetition.TOP),
    *({"duplicate_ngrams": {"n": n}} for n in repetition.DUPLICATE),
)
_C4: tuple[Spec, ...] = (
    "citations",
    "line_words",
    "javascript_lines",
    "line_phrases",
    "lorem_ipsum",
    "curly_braces",
    "sentences",
)

PRESETS: dict[str, tuple[Spec, ...]] = {
    "gopher": (*_QUALITY, *_REPETITION),
    "c4": ("terminal_lines", *_C4),
    "web": (
        *_C4,
        *_QUALITY,
        "line_endings",
        "short_lines",
        {"duplicate_line_characters": {"most": 0.1}},
        *(spec for spec in _REPETITION if spec != "duplicate_line_characters"),
    ),
}
"""Rules by where they are from. `web` is FineWeb's choice: C4's but for the ends of lines, Gopher's, and its own three.
C4's bad words are left to `banned_words`, its repeated three-sentence spans to the removal of duplicates."""


class Cleaned(NamedTuple):
    """The text, or None; and why: the rule that removed it, `CHANGED` where a rule edited it, else an empty string."""

    text: str | None
    why: str


def clean(rules: Sequence[Rule], text: str) -> Cleaned:
    """What the rules, one after the other, make of a text.

    Example:
        >>> short = build(["citations", {"length": {"most": 12}}])
        >>> clean(short, "It is.[1]"), clean(short, "It was and it is.")
        (Cleaned(text='It is.', why='changed'), Cleaned(text=None, why='length'))
    """
    left = text
    for rule in rules:
        result = rule.apply(left)
        if not result:
            return Cleaned(None, rule.name)
        left = result
    return Cleaned(left, "" if left == text else CHANGED)


def build(specs: Iterable[object], registry: Mapping[str, Callable[..., Any]] = RULES) -> tuple[Any, ...]:
    """Rules, or what else a registry makes, from what a config says: each a `Spec`, in its order.

    Presets, which are of `RULES`, are unfolded.

    Raises:
        ValueError: an unknown rule or argument (names the nearest one), or an argument of the wrong type.
        FileNotFoundError: a list's file is missing.

    Example:
        >>> [rule.name for rule in build(["lorem_ipsum", {"top_ngram": {"n": 3}}])]
        ['lorem_ipsum', 'top_3_gram']
    """
    presets = PRESETS if registry is RULES else {}
    built: list[Any] = []
    for spec in specs:
        name, arguments = _parsed(spec)
        if name in presets:
            if arguments:
                raise ValueError(f"cleaning: the preset {name!r} takes no arguments; name its rules one by one")
            built += build(presets[name])
        elif name in registry:
            built.append(registry[name](**_checked(name, registry[name], arguments)))
        else:
            raise ValueError(f"cleaning: no rule {name!r}{_nearest(name, [*registry, *presets])}")
    return tuple(built)


def _parsed(spec: object) -> tuple[str, Mapping[str, Any]]:
    if isinstance(spec, str):
        return spec, {}
    [(name, arguments)] = spec.items() if isinstance(spec, Mapping) and len(spec) == 1 else [(None, None)]
    if not isinstance(name, str) or not isinstance(arguments, Mapping | None):
        raise ValueError(f"cleaning: {spec!r} is no rule; write a name, or `name: {{argument: value}}`")
    return name, arguments or {}


def _checked(name: str, constructor: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the right names and types: 1 will do where a share is meant."""
    known, kinds = inspect.signature(constructor).parameters, get_type_hints(constructor)
    checked = {}
    for argument, value in arguments.items():
        if argument not in known:
            raise ValueError(f"cleaning: {name} has no argument {argument!r}{_nearest(argument, list(known))}")
        try:
            checked[argument] = msgspec.convert(value, kinds[argument])
        except msgspec.ValidationError as error:
            raise ValueError(f"cleaning: {name}: {argument} {value!r}: {error}") from None
    return checked


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known) or 'none'}"
