"""Text in one form: NFKC, plain spaces and newlines, nothing invisible; printable ASCII alone where asked for.

What happens, in this order: CRLF, CR, U+2028 and U+2029 become a newline; every other space of Unicode becomes one
plain space; control characters go, except newline and tab; what is invisible goes (byte order mark, zero-width space,
word joiner, soft hyphen, marks of direction), but the joiners U+200C and U+200D stay, because Persian, Indic scripts
and emoji are spelt with them; a lone surrogate, which no file can hold, becomes U+FFFD; then NFKC (Unicode Annex 15).

Invariant: pure and idempotent: what was normalised once is returned as it is.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

Alphabet = Literal["unicode", "ascii", "transliterate"]
"""Every character; or 32-126, newline and tab, where the others are dropped; or where accents are taken off first."""

_NEWLINES = re.compile("\r\n?|[\u2028\u2029]")
_ODD_ASCII = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
_NOT_ASCII = re.compile("[^\t\n -~]+")
_SPACES = "\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
_INVISIBLE = "\u00ad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff"
_SPACE = re.compile(f"[{_SPACES}]")
_DROPPED = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_INVISIBLE}]+")
_SURROGATE = re.compile("[\ud800-\udfff]")

_SPELT = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict.fromkeys("‐‑‒–—―−", "-"),
        "⁄": "/",
        "•": "*",
        "×": "x",
        "ß": "ss",
        "ẞ": "SS",
        "ı": "i",
        "æ": "ae",
        "Æ": "AE",
        "œ": "oe",
        "Œ": "OE",
        "ø": "o",
        "Ø": "O",
        "ł": "l",
        "Ł": "L",
        "đ": "d",
        "Đ": "D",
        "ð": "d",
        "Ð": "D",
        "þ": "th",
        "Þ": "Th",
    }
)
"""What NFKD leaves whole though any reader knows how it is written in ASCII."""


def normalize(text: str, alphabet: Alphabet = "unicode", lowercase: bool = False) -> str:
    """The text in its one form.

    Args:
        alphabet: "ascii" drops everything outside 32-126, newline and tab; "transliterate" does so after NFKD, which
            takes accents off, and after spelling out quotes, dashes and a dozen Latin letters.

    Example:
        >>> normalize("ﬁne\\u00a0caf\\u0065\\u0301\\r\\n\\ufeff\\x07")
        'fine café\\n'
        >>> normalize("“Ça va – Œuvre”", "transliterate"), normalize("Ça va", "ascii", lowercase=True)
        ('"Ca va - OEuvre"', 'a va')
    """
    if text.isascii():
        if _ODD_ASCII.search(text):
            text = _ODD_ASCII.sub("", _NEWLINES.sub("\n", text))
        return text.lower() if lowercase else text
    text = _SPACE.sub(" ", _DROPPED.sub("", _NEWLINES.sub("\n", text)))
    text = unicodedata.normalize("NFKC", _SURROGATE.sub("\ufffd", text))
    if lowercase:  # composed anew: j and caron, unlike J and caron, are one character
        text = unicodedata.normalize("NFKC", text.lower())
    if alphabet == "unicode":
        return text
    if alphabet == "transliterate":
        return _NOT_ASCII.sub(_spelt, text)
    return _NOT_ASCII.sub("", text)


def _spelt(run: re.Match[str]) -> str:
    """A run of other characters in ASCII; NFKD takes each by itself, so a run is as good as the whole text."""
    return _NOT_ASCII.sub("", unicodedata.normalize("NFKD", run[0].translate(_SPELT)))
