"""Rules with a list of the user's: banned words, hosts and URL parts.

C4's list of bad words is not shipped: `banned_words` takes the user's.

Invariant: a rule is picklable and pure; its list is read once, when the rule is made.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from slm_fn.data.clean.rules import Rule, keep_if

_WORD = re.compile(r"\w+")


def banned_words(words: Sequence[str] = (), file: str | None = None) -> Rule:
    """Removes texts that contain a banned word, or a banned sequence of words (C4).

    Args:
        words: words and sequences of words, in any case.
        file: a UTF-8 file with more of them, one on each line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not UTF-8, or the list is empty.
    """
    entries = read_entries(words, file, "banned_words: words")
    phrases = [_join_words(entry) for entry in entries]
    single_words = frozenset(phrase for phrase in phrases if " " not in phrase) - {""}
    sequences = tuple(phrase for phrase in phrases if " " in phrase)
    predicate = partial(_lacks_words, single_words=single_words, sequences=sequences)
    return keep_if("banned_words", predicate)


def _join_words(text: str) -> str:
    words = _WORD.findall(text.lower())
    return " ".join(words)


def _lacks_words(text: str, single_words: frozenset[str], sequences: tuple[str, ...]) -> bool:
    words = _WORD.findall(text.lower())
    if not single_words.isdisjoint(words):
        return False
    if not sequences:
        return True
    joined = " ".join(words)
    spaced = f" {joined} "
    return not any(f" {sequence} " in spaced for sequence in sequences)


def hosts(names: Sequence[str] = (), file: str | None = None) -> Rule:
    """Removes URLs whose host is one of these, or a subdomain of one.

    Args:
        names: host names.
        file: a UTF-8 file with more of them, one on each line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not UTF-8, or the list is empty.
    """
    entries = read_entries(names, file, "hosts: names")
    banned_hosts = frozenset(entry.lower().strip(".") for entry in entries)
    predicate = partial(_has_allowed_host, banned_hosts=banned_hosts)
    return keep_if("hosts", predicate)


def _has_allowed_host(url: str, banned_hosts: frozenset[str]) -> bool:
    try:
        host = urlsplit(url if "//" in url else f"//{url}").hostname or ""
    except ValueError:  # an invalid address, such as one with a single bracket
        return False
    labels = host.strip(".").split(".")
    domains = (".".join(labels[i:]) for i in range(len(labels)))
    return not any(domain in banned_hosts for domain in domains)


def url_parts(parts: Sequence[str] = (), file: str | None = None) -> Rule:
    """Removes URLs that contain one of these strings, in any case.

    Args:
        parts: the strings.
        file: a UTF-8 file with more of them, one on each line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not UTF-8, or the list is empty.
    """
    entries = read_entries(parts, file, "url_parts: parts")
    substrings = tuple(entry.lower() for entry in entries)
    predicate = partial(_lacks_substrings, substrings=substrings)
    return keep_if("url_parts", predicate)


def _lacks_substrings(url: str, substrings: tuple[str, ...]) -> bool:
    lowered = url.lower()
    return not any(substring in lowered for substring in substrings)


def read_entries(given: Sequence[str], file: str | None, name: str) -> list[str]:
    """Returns the entries of a list and of a file that has one on each line.

    Args:
        given: entries from the config.
        file: path of a UTF-8 file, or None.
        name: what error messages call the list.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not UTF-8, or there are no entries.
    """
    lines = list(given)
    if file is not None:
        try:
            lines += Path(file).read_text(encoding="utf-8").splitlines()
        except (FileNotFoundError, IsADirectoryError):
            raise FileNotFoundError(
                f"{name}: no file {file}; give one with an entry on each line"
            ) from None
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name}: {file} is not UTF-8 (byte {error.start}); save it as UTF-8"
            ) from None
    entries = [line.strip() for line in lines if line.strip()]
    if not entries:
        raise ValueError(f"{name}: an empty list; name some, or `file:` with one on each line")
    return entries
