"""Text normalization: NFKC, plain spaces and newlines, nothing invisible, optionally ASCII only.

In this order: CRLF, CR, U+2028 and U+2029 become a newline; every other Unicode space becomes one
plain space; control characters except newline and tab are removed; invisible characters are removed
(byte order mark, zero-width space, word joiner, soft hyphen, direction marks), except the joiners
U+200C and U+200D, which Persian, Indic scripts and emoji need; a lone surrogate, which no file can
hold, becomes U+FFFD; then NFKC (Unicode Annex 15).

Invariant: pure and idempotent: normalized text is returned unchanged.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

CharacterSet = Literal["unicode", "ascii", "transliterate"]
"""Which characters remain.

All of them; or 32 to 126, newline and tab; or these after accents were removed from letters.
"""

_NEWLINES = re.compile("\r\n?|[\u2028\u2029]")
_ASCII_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
_NOT_ASCII = re.compile("[^\t\n -~]+")
_SPACES = "\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
_INVISIBLE = "\u00ad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff"
_SPACE = re.compile(f"[{_SPACES}]")
_REMOVED = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_INVISIBLE}]+")
_SURROGATE = re.compile("[\ud800-\udfff]")

_ASCII_SPELLINGS = str.maketrans(
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
"""ASCII spellings of characters that NFKD does not decompose."""


def normalize(text: str, alphabet: CharacterSet = "unicode", lowercase: bool = False) -> str:
    """Returns the normalized text.

    Args:
        text: any text.
        alphabet: "unicode" keeps all characters; "ascii" removes everything outside 32 to 126,
            newline and tab; "transliterate" does so after NFKD, which separates accents from
            letters, and after spelling out quotes, dashes and a dozen Latin letters.
        lowercase: whether to convert to lower case.

    Example:
        >>> normalize("ﬁne\\u00a0caf\\u0065\\u0301\\r\\n\\ufeff\\x07")
        'fine café\\n'
        >>> normalize("“Ça va – Œuvre”", "transliterate")
        '"Ca va - OEuvre"'
        >>> normalize("Ça va", "ascii", lowercase=True)
        'a va'
    """
    if text.isascii():
        if _ASCII_CONTROL.search(text):
            text = _ASCII_CONTROL.sub("", _NEWLINES.sub("\n", text))
        return text.lower() if lowercase else text
    text = _NEWLINES.sub("\n", text)
    text = _REMOVED.sub("", text)
    text = _SPACE.sub(" ", text)
    text = _SURROGATE.sub("\ufffd", text)
    text = unicodedata.normalize("NFKC", text)
    if lowercase:
        # Composed again: j and caron, unlike J and caron, are one character.
        text = unicodedata.normalize("NFKC", text.lower())
    if alphabet == "unicode":
        return text
    if alphabet == "transliterate":
        return _NOT_ASCII.sub(_transliterate, text)
    return _NOT_ASCII.sub("", text)


def _transliterate(run: re.Match[str]) -> str:
    """Returns the ASCII of a run of other characters.

    NFKD decomposes each character by itself, so a run gives the same as the full text.
    """
    spelled = run[0].translate(_ASCII_SPELLINGS)
    return _NOT_ASCII.sub("", unicodedata.normalize("NFKD", spelled))
