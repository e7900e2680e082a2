"""Cleaning as composed rules, built by name from YAML, so that each rule's removals are counted.

A rule that removes a text returns None, one that edits it returns another text, and one that edits
everything away removes it. The rules after Gopher, C4 and FineWeb are in `rules`, `line_rules`,
`repetition` and `list_rules`. Rules over a record's URL are the same over another string:
`build_rules(specs, URL_RULES)`, then `clean(url_rules, url)` before the text is cleaned.
`text.normalize` is added by the caller as a rule: `Rule("normalize", normalize)`.

Invariant: the first rule that removes a text ends its cleaning, so the counts of removed and kept
texts add up to all.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, get_type_hints, overload

import msgspec

from slm_fn.data.clean import line_rules, list_rules, repetition, rules
from slm_fn.data.clean.rules import Rule

T = TypeVar("T")

CHANGED = "changed"
"""The reason of a text that was kept after a rule edited it."""

_CONSTRUCTORS: tuple[Callable[..., Rule], ...] = (
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
    list_rules.banned_words,
    line_rules.terminal_lines,
    line_rules.line_words,
    line_rules.line_phrases,
    line_rules.javascript_lines,
    line_rules.citations,
    line_rules.line_endings,
    line_rules.short_lines,
    repetition.duplicate_lines,
    repetition.duplicate_paragraphs,
    repetition.duplicate_line_characters,
    repetition.duplicate_paragraph_characters,
    repetition.top_ngram,
    repetition.duplicate_ngrams,
)
RULES: dict[str, Callable[..., Rule]] = {
    constructor.__name__: constructor for constructor in _CONSTRUCTORS
}
"""The rules over texts, by the names that YAML uses."""

URL_RULES: dict[str, Callable[..., Rule]] = {
    "hosts": list_rules.hosts,
    "url_parts": list_rules.url_parts,
}
"""The rules over URLs, by the names that YAML uses."""

RuleSpec = str | Mapping[str, Any]
"""The name of a rule or preset, or a rule's name with its arguments: `{length: {least: 200}}`."""

_QUALITY: tuple[RuleSpec, ...] = (
    "word_count",
    "word_length",
    "symbols",
    "bullets",
    "ellipses",
    "letters",
    "stop_words",
)
_REPETITION: tuple[RuleSpec, ...] = (
    "duplicate_lines",
    "duplicate_paragraphs",
    "duplicate_line_characters",
    "duplicate_paragraph_characters",
    *({"top_ngram": {"n": n}} for n in repetition.TOP_NGRAM_LIMITS),
    *({"duplicate_ngrams": {"n": n}} for n in repetition.DUPLICATE_NGRAM_LIMITS),
)
_C4: tuple[RuleSpec, ...] = (
    "citations",
    "line_words",
    "javascript_lines",
    "line_phrases",
    "lorem_ipsum",
    "curly_braces",
    "sentences",
)

PRESETS: dict[str, tuple[RuleSpec, ...]] = {
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
"""Groups of rules by their source.

`web` is FineWeb's choice: C4's rules except the one about line ends, Gopher's, and its own three.
C4's bad words are left to `banned_words`, its repeated three-sentence spans to deduplication.
"""


class CleanResult(NamedTuple):
    """The cleaned text, or None if a rule removed it; and the reason.

    `reason` is the rule that removed the text, `CHANGED` if a rule edited it, else empty.
    """

    text: str | None
    reason: str


def clean(rules: Sequence[Rule], text: str) -> CleanResult:
    """Applies rules to a text, one after the other.

    Example:
        >>> rules = build_rules(["citations", {"length": {"most": 12}}])
        >>> clean(rules, "It is.[1]")
        CleanResult(text='It is.', reason='changed')
        >>> clean(rules, "It was and it is.")
        CleanResult(text=None, reason='length')
    """
    cleaned = text
    for rule in rules:
        result = rule.apply(cleaned)
        if not result:
            return CleanResult(None, rule.name)
        cleaned = result
    return CleanResult(cleaned, "" if cleaned == text else CHANGED)


@overload
def build_rules(specs: Iterable[object]) -> tuple[Rule, ...]: ...


@overload
def build_rules(
    specs: Iterable[object], registry: Mapping[str, Callable[..., T]]
) -> tuple[T, ...]: ...


def build_rules(
    specs: Iterable[object], registry: Mapping[str, Callable[..., Any]] = RULES
) -> tuple[Any, ...]:
    """Returns the rules that a config names, or other objects of a registry, in their order.

    Args:
        specs: a `RuleSpec` each. Presets, which exist for `RULES` only, are expanded.
        registry: constructors by name.

    Raises:
        ValueError: an unknown rule or argument (suggests the nearest name), or an argument of the
            wrong type.
        FileNotFoundError: the file of a list is missing.

    Example:
        >>> [rule.name for rule in build_rules(["lorem_ipsum", {"top_ngram": {"n": 3}}])]
        ['lorem_ipsum', 'top_3_gram']
    """
    presets = PRESETS if registry is RULES else {}
    built: list[Any] = []
    for spec in specs:
        name, arguments = _parse_spec(spec)
        if name in presets:
            if arguments:
                raise ValueError(
                    f"cleaning: the preset {name!r} takes no arguments; name its rules one by one"
                )
            built += build_rules(presets[name])
        elif name in registry:
            constructor = registry[name]
            built.append(constructor(**_check_arguments(name, constructor, arguments)))
        else:
            suggestion = _suggest(name, [*registry, *presets])
            raise ValueError(f"cleaning: no rule {name!r}{suggestion}")
    return tuple(built)


def _parse_spec(spec: object) -> tuple[str, Mapping[str, Any]]:
    """Returns the name and the arguments of a spec."""
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, Mapping) and len(spec) == 1:
        [(name, arguments)] = spec.items()
        if isinstance(name, str) and isinstance(arguments, Mapping | None):
            return name, arguments or {}
    raise ValueError(
        f"cleaning: {spec!r} is not a rule; write a name, or `name: {{argument: value}}`"
    )


def _check_arguments(
    name: str, constructor: Callable[..., object], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns arguments of the right names and types: the integer 1 is accepted as a float."""
    parameters = inspect.signature(constructor).parameters
    types = get_type_hints(constructor)
    checked = {}
    for argument, value in arguments.items():
        if argument not in parameters:
            suggestion = _suggest(argument, list(parameters))
            raise ValueError(f"cleaning: {name} has no argument {argument!r}{suggestion}")
        try:
            checked[argument] = msgspec.convert(value, types[argument])
        except msgspec.ValidationError as error:
            raise ValueError(f"cleaning: {name}: {argument} {value!r}: {error}") from None
    return checked


def _suggest(name: str, known: Sequence[str]) -> str:
    """Returns the end of an error message: the nearest known name, or all of them."""
    nearest = difflib.get_close_matches(name, known, 1, cutoff=0.5)
    if nearest:
        return f"; did you mean {nearest[0]!r}?"
    return f"; there are {', '.join(known) or 'none'}"
