"""Rules over a whole text, its lines or its url, after Gopher, C4 and FineWeb: each constructor returns one rule.

Every threshold is an argument whose default is its paper's, and is itself still kept. Words are what white space parts,
lines are those with something on them. Rules that count words are for languages that put spaces between them.

    Gopher    Rae et al., arXiv 2112.11446, appendix A.1.1
    C4        Raffel et al., arXiv 1910.10683, section 2.2, as in its last version
    FineWeb   Penedo et al., arXiv 2406.17557, section 3.5

C4's list of bad words is not shipped: `banned_words` takes a file of the user's.

Invariant: a rule is picklable, pure, and returns its text itself, part of it, or None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Rule(NamedTuple):
    """What it is counted as, and what it makes of a text: the same, another, or None."""

    name: str
    apply: Callable[[str], str | None]


def when(name: str, keeps: Callable[..., bool], **arguments: Any) -> Rule:
    """A rule that keeps the texts for which `keeps(text, **arguments)`, a module's function, is true."""
    return Rule(name, partial(_judged, keeps=partial(keeps, **arguments)))


def _judged(text: str, keeps: Callable[[str], bool]) -> str | None:
    return text if keeps(text) else None


@lru_cache(maxsize=1)
def words_of(text: str) -> list[str]:
    """The words of the text that the rules are at work on; nobody writes to the list."""
    return text.split()


@lru_cache(maxsize=1)
def lines_of(text: str) -> list[str]:
    """The lines with something on them, without the space around."""
    return [line for line in map(str.strip, text.split("\n")) if line]


def length(least: int = 1, most: int | None = None) -> Rule:
    """Between so many characters."""
    return when("length", _length, least=least, most=most)


def _length(text: str, least: int, most: int | None) -> bool:
    return least <= len(text) and (most is None or len(text) <= most)


def word_count(least: int = 50, most: int = 100_000) -> Rule:
    """Gopher: between so many words."""
    return when("word_count", _word_count, least=least, most=most)


def _word_count(text: str, least: int, most: int) -> bool:
    return least <= len(words_of(text)) <= most


def word_length(least: float = 3.0, most: float = 10.0) -> Rule:
    """Gopher: words of so many characters on average."""
    return when("word_length", _word_length, least=least, most=most)


def _word_length(text: str, least: float, most: float) -> bool:
    words = words_of(text)
    return bool(words) and least <= sum(map(len, words)) / len(words) <= most


def symbols(most: float = 0.1) -> Rule:
    """Gopher: at most so many hash signs per word, and at most so many ellipses."""
    return when("symbols", _symbols, most=most)


def _symbols(text: str, most: float) -> bool:
    allowed = most * len(words_of(text))
    return text.count("#") <= allowed and text.count("...") + text.count("…") <= allowed


def bullets(most: float = 0.9) -> Rule:
    """Gopher: at most this share of the lines begins with a bullet."""
    return when("bullets", _bullets, most=most)


BULLETS = ("•", "‣", "▪", "●", "○", "■", "□", "◦", "–", "-", "*", "·")


def _bullets(text: str, most: float) -> bool:
    lines = lines_of(text)
    return sum(line.startswith(BULLETS) for line in lines) <= most * len(lines)


def ellipses(most: float = 0.3) -> Rule:
    """Gopher: at most this share of the lines ends with an ellipsis."""
    return when("ellipses", _ellipses, most=most)


def _ellipses(text: str, most: float) -> bool:
    lines = lines_of(text)
    return sum(line.endswith(("...", "…")) for line in lines) <= most * len(lines)


def letters(least: float = 0.8) -> Rule:
    """Gopher: at least this share of the words holds a letter."""
    return when("letters", _letters, least=least)


_LETTER = re.compile(r"[^\W\d_]")


def _letters(text: str, least: float) -> bool:
    words = words_of(text)
    return sum(word.isalpha() or _LETTER.search(word) is not None for word in words) >= least * len(words)


STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")


def stop_words(least: int = 2, words: Sequence[str] = STOP_WORDS) -> Rule:
    """Gopher: at least so many different ones of the commonest English words, in any case."""
    return when("stop_words", _stop_words, least=least, words=frozenset(word.lower() for word in words))


def _stop_words(text: str, least: int, words: frozenset[str]) -> bool:
    return len(words.intersection(text.lower().split())) >= least


def lorem_ipsum() -> Rule:
    """C4: no page with "lorem ipsum" on it."""
    return when("lorem_ipsum", _without, phrase="lorem ipsum")


def curly_braces() -> Rule:
    """C4: no page with a curly brace, which natural language has no use for."""
    return when("curly_braces", _without, phrase="{")


def _without(text: str, phrase: str) -> bool:
    return phrase not in text.lower()


def sentences(least: int = 3) -> Rule:
    """C4: at least so many sentences: a mark that ends one, quotes or brackets, and a space or the end (no nltk)."""
    return when("sentences", _sentences, least=least)


_SENTENCE = re.compile(r"[.!?。！？…][\"'”’»)\]]*(?=\s|$)|[。！？]")


def _sentences(text: str, least: int) -> bool:
    found = _SENTENCE.finditer(text)
    return all(next(found, None) is not None for _ in range(least))


def banned_words(words: Sequence[str] = (), file: str | None = None) -> Rule:
    """C4: no page with a word, or several in a row, of a list: handed in, or a UTF-8 file with one on each line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8, or there is no list at all.
    """
    listed = [" ".join(_WORD.findall(entry.lower())) for entry in entries(words, file, "banned_words: words")]
    single = frozenset(entry for entry in listed if " " not in entry) - {""}
    return when("banned_words", _unbanned, single=single, several=tuple(e for e in listed if " " in e))


_WORD = re.compile(r"\w+")


def _unbanned(text: str, single: frozenset[str], several: tuple[str, ...]) -> bool:
    found = _WORD.findall(text.lower())
    if not single.isdisjoint(found):
        return False
    spaced = f" {' '.join(found)} " if several else ""
    return not any(f" {phrase} " in spaced for phrase in several)


def entries(given: Sequence[str], file: str | None, name: str) -> list[str]:
    """A list as handed in and as in a file, one entry on each line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8, or there is no list at all.
    """
    listed = list(given)
    if file is not None:
        try:
            listed += Path(file).read_text(encoding="utf-8").splitlines()
        except (FileNotFoundError, IsADirectoryError):
            raise FileNotFoundError(f"{name}: no file {file}; give one with an entry on each line") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}: {file} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    listed = [entry.strip() for entry in listed if entry.strip()]
    if not listed:
        raise ValueError(f"{name}: an empty list; name some, or `file:` with one on each line")
    return listed


def hosts(names: Sequence[str] = (), file: str | None = None) -> Rule:
    """Over a url: its host is none of these, nor below one of them.

    Raises:
        FileNotFoundError, ValueError: as `banned_words`.
    """
    listed = frozenset(entry.lower().strip(".") for entry in entries(names, file, "hosts: names"))
    return when("hosts", _allowed_host, listed=listed)


def _allowed_host(url: str, listed: frozenset[str]) -> bool:
    try:
        host = urlsplit(url if "//" in url else f"//{url}").hostname or ""
    except ValueError:  # an address that is none: [
        return False
    parts = host.strip(".").split(".")
    return not any(".".join(parts[i:]) in listed for i in range(len(parts)))


def url_parts(parts: Sequence[str] = (), file: str | None = None) -> Rule:
    """Over a url: it holds none of these, in any case.

    Raises:
        FileNotFoundError, ValueError: as `banned_words`.
    """
    listed = tuple(entry.lower() for entry in entries(parts, file, "url_parts: parts"))
    return when("url_parts", _allowed_url, listed=listed)


def _allowed_url(url: str, listed: tuple[str, ...]) -> bool:
    lowered = url.lower()
    return not any(part in lowered for part in listed)
