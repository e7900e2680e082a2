"""Rules over a full text, after Gopher, C4 and FineWeb: each public function returns one rule.

Every threshold is an argument with the paper's value as default, and a text exactly at the
threshold is kept. Words are separated by white space; only lines that are not blank count. Rules
that count words are for languages that put spaces between them.

    Gopher    Rae et al., arXiv 2112.11446, appendix A.1.1
    C4        Raffel et al., arXiv 1910.10683, section 2.2, as in its last version
    FineWeb   Penedo et al., arXiv 2406.17557, section 3.5

Invariant: a rule is picklable and pure, and returns its text itself, part of it, or None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple


class Rule(NamedTuple):
    """A cleaning rule: the name it is counted under, and a function from a text to a text or None.

    `apply` returns the text itself, an edited text, or None if the rule removes the text.
    """

    name: str
    apply: Callable[[str], str | None]


def keep_if(name: str, predicate: Callable[[str], bool]) -> Rule:
    """Returns the rule that keeps a text if the predicate is true and removes it otherwise.

    Args:
        name: the rule's name.
        predicate: a function of the text; a module's function or a partial of one, for pickling.

    Example:
        >>> keep_if("ascii", str.isascii).apply("é") is None
        True
    """
    return Rule(name, partial(_keep_or_remove, predicate=predicate))


def _keep_or_remove(text: str, predicate: Callable[[str], bool]) -> str | None:
    return text if predicate(text) else None


@lru_cache(maxsize=1)
def split_words(text: str) -> tuple[str, ...]:
    """Returns the words of a text; cached for the text that the rules are applied to."""
    return tuple(text.split())


@lru_cache(maxsize=1)
def split_lines(text: str) -> tuple[str, ...]:
    """Returns the lines that are not blank, without the space around them; cached as words are."""
    stripped = map(str.strip, text.split("\n"))
    return tuple(line for line in stripped if line)


def length(least: int = 1, most: int | None = None) -> Rule:
    """Keeps texts of `least` to `most` characters."""
    predicate = partial(_has_length, least=least, most=most)
    return keep_if("length", predicate)


def _has_length(text: str, least: int, most: int | None) -> bool:
    return least <= len(text) and (most is None or len(text) <= most)


def word_count(least: int = 50, most: int = 100_000) -> Rule:
    """Keeps texts of `least` to `most` words (Gopher)."""
    predicate = partial(_has_word_count, least=least, most=most)
    return keep_if("word_count", predicate)


def _has_word_count(text: str, least: int, most: int) -> bool:
    num_words = len(split_words(text))
    return least <= num_words <= most


def word_length(least: float = 3.0, most: float = 10.0) -> Rule:
    """Keeps texts whose words have `least` to `most` characters on average (Gopher)."""
    predicate = partial(_has_word_length, least=least, most=most)
    return keep_if("word_length", predicate)


def _has_word_length(text: str, least: float, most: float) -> bool:
    words = split_words(text)
    if not words:
        return False
    num_characters = sum(map(len, words))
    mean_length = num_characters / len(words)
    return least <= mean_length <= most


def symbols(most: float = 0.1) -> Rule:
    """Keeps texts with at most `most` hash signs, and as many ellipses, per word (Gopher)."""
    predicate = partial(_has_few_symbols, most=most)
    return keep_if("symbols", predicate)


def _has_few_symbols(text: str, most: float) -> bool:
    num_words = len(split_words(text))
    max_count = most * num_words
    num_hash_signs = text.count("#")
    num_ellipses = text.count("...") + text.count("…")
    return num_hash_signs <= max_count and num_ellipses <= max_count


def bullets(most: float = 0.9) -> Rule:
    """Keeps texts in which at most this share of the lines begins with a bullet (Gopher)."""
    predicate = partial(_has_few_bullets, most=most)
    return keep_if("bullets", predicate)


BULLETS = ("•", "‣", "▪", "●", "○", "■", "□", "◦", "–", "-", "*", "·")


def _has_few_bullets(text: str, most: float) -> bool:
    lines = split_lines(text)
    num_bullets = sum(line.startswith(BULLETS) for line in lines)
    return num_bullets <= most * len(lines)


def ellipses(most: float = 0.3) -> Rule:
    """Keeps texts in which at most this share of the lines ends with an ellipsis (Gopher)."""
    predicate = partial(_has_few_ellipses, most=most)
    return keep_if("ellipses", predicate)


def _has_few_ellipses(text: str, most: float) -> bool:
    lines = split_lines(text)
    num_ellipses = sum(line.endswith(("...", "…")) for line in lines)
    return num_ellipses <= most * len(lines)


def letters(least: float = 0.8) -> Rule:
    """Keeps texts in which at least this share of the words contains a letter (Gopher)."""
    predicate = partial(_has_letters, least=least)
    return keep_if("letters", predicate)


_LETTER = re.compile(r"[^\W\d_]")


def _has_letters(text: str, least: float) -> bool:
    words = split_words(text)
    num_with_letter = sum(word.isalpha() or _LETTER.search(word) is not None for word in words)
    return num_with_letter >= least * len(words)


STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")


def stop_words(least: int = 2, words: Sequence[str] = STOP_WORDS) -> Rule:
    """Keeps texts with at least this many different stop words, in any case (Gopher).

    Args:
        least: number of different stop words.
        words: the stop words; by default eight common English words.
    """
    lowered = frozenset(word.lower() for word in words)
    predicate = partial(_has_stop_words, least=least, words=lowered)
    return keep_if("stop_words", predicate)


def _has_stop_words(text: str, least: int, words: frozenset[str]) -> bool:
    text_words = text.lower().split()
    num_different = len(words.intersection(text_words))
    return num_different >= least


def lorem_ipsum() -> Rule:
    """Removes texts that contain "lorem ipsum" (C4)."""
    predicate = partial(_lacks_phrase, phrase="lorem ipsum")
    return keep_if("lorem_ipsum", predicate)


def curly_braces() -> Rule:
    """Removes texts that contain a curly brace, which is rare in natural language (C4)."""
    predicate = partial(_lacks_phrase, phrase="{")
    return keep_if("curly_braces", predicate)


def _lacks_phrase(text: str, phrase: str) -> bool:
    return phrase not in text.lower()


def sentences(least: int = 3) -> Rule:
    """Keeps texts of at least this many sentences (C4, without nltk).

    A sentence ends with an end mark, then quotes or brackets, then a space or the end of the text.
    """
    predicate = partial(_has_sentences, least=least)
    return keep_if("sentences", predicate)


_SENTENCE_END = re.compile(r"[.!?。！？…][\"'”’»)\]]*(?=\s|$)|[。！？]")


def _has_sentences(text: str, least: int) -> bool:
    ends = _SENTENCE_END.finditer(text)
    return all(next(ends, None) is not None for _ in range(least))
