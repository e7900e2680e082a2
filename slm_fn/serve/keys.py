"""API keys: made here, shown once, kept as hashes in a file, and compared in constant time.

Invariant: a key is in no file, log or error; whoever reads the file of hashes can ask for nothing with it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

import msgspec

from slm_fn.core import files

LINE = re.compile(r"([\w.@-]{1,64}) sha256:([0-9a-f]{64})")
MADE_BY = "each line is `NAME sha256:HASH`, as `slm keys add FILE` writes it"


class StoredKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose key it is, and the SHA-256 of the key in hex."""

    name: str
    hash: str


def make(name: str) -> tuple[str, StoredKey]:
    """A new key for someone, and what to keep of it.

    Raises:
        ValueError: a name that does not fit a line of the file.

    Example:
        >>> key, stored = make("ada")
        >>> identify([stored], key), identify([stored], key + "x")
        ('ada', None)
    """
    key = f"slm-{secrets.token_urlsafe(32)}"
    stored = StoredKey(name, _hash(key))
    if not LINE.fullmatch(_line(stored)):
        raise ValueError(f"{name!r} cannot name a key: take 1 to 64 letters, digits and any of . _ @ -")
    return key, stored


def _hash(key: str) -> str:
    # 256 bits of chance cannot be guessed, so no slow hash is needed: it would only slow every request.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def identify(keys: Sequence[StoredKey], presented: str) -> str | None:
    """Whose key this is, or None; the time it takes tells nothing about how near it is to one.

    Example:
        >>> identify([], "slm-anything") is None
        True
    """
    told, found = _hash(presented), None
    for stored in keys:
        if hmac.compare_digest(stored.hash, told):
            found = stored.name  # and go on: the time shall not tell which
    return found


def read(path: Path | str) -> tuple[StoredKey, ...]:
    """The keys of a file; empty lines and those that begin with # are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is none of those `slm keys add` writes, a name stands twice, or there are no keys.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file of API keys; `slm keys add {path}` makes one") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: no file of API keys; {MADE_BY}") from None
    found: list[StoredKey] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = LINE.fullmatch(line.strip())
        if match is None:  # the line is not shown: somebody may have put a key there
            raise ValueError(f"{path}, line {number}: {MADE_BY}")
        found.append(StoredKey(*match.groups()))
    if not found:
        raise ValueError(f"{path}: holds no API key; `slm keys add {path}` makes one")
    names = [key.name for key in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path}: the name {twice!r} stands twice; rate limits go by name")
    return tuple(found)


def write(path: Path | str, keys: Sequence[StoredKey]) -> None:
    """Write the file of hashes, readable by its owner alone."""
    place = files.write(path, "".join(f"{_line(key)}\n" for key in keys))
    os.chmod(place, 0o600)


def _line(key: StoredKey) -> str:
    return f"{key.name} sha256:{key.hash}"
