"""API keys: generated once, stored as hashes in a file, compared in constant time.

Invariant: a key is in no file, log or error; the file of hashes does not allow any request.
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
FORMAT_HINT = "each line is `NAME sha256:HASH`, as `slm keys add FILE` writes it"


class StoredKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The name of a key's owner, and the SHA-256 of the key in hexadecimal."""

    name: str
    hash: str


def generate(name: str) -> tuple[str, StoredKey]:
    """Returns a new key for an owner, and what is stored of it.

    Args:
        name: the owner: 1 to 64 letters, digits and any of . _ @ -

    Raises:
        ValueError: the name does not fit a line of the file.

    Example:
        >>> key, stored = generate("ada")
        >>> identify([stored], key), identify([stored], key + "x")
        ('ada', None)
    """
    key = f"slm-{secrets.token_urlsafe(32)}"
    stored = StoredKey(name, _hash(key))
    if not LINE.fullmatch(_format_line(stored)):
        raise ValueError(
            f"{name!r} is not a valid name of a key: use 1 to 64 letters, digits and any of . _ @ -"
        )
    return key, stored


def _hash(key: str) -> str:
    # 256 random bits cannot be guessed, so a slow hash would only slow down every request.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def identify(keys: Sequence[StoredKey], presented: str) -> str | None:
    """Returns the owner of a key, or None; the time this takes does not depend on the key.

    Example:
        >>> identify([], "slm-anything") is None
        True
    """
    presented_hash = _hash(presented)
    owner = None
    for stored in keys:
        if hmac.compare_digest(stored.hash, presented_hash):
            owner = stored.name  # no early exit: the time must not depend on which key matched
    return owner


def read(path: Path | str) -> tuple[StoredKey, ...]:
    """Returns the keys of a file; empty lines and those that begin with # are skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line has another format, two keys have one name, or the file has no keys.
    """
    keys = _parse_lines(path, _read_text(path))
    if not keys:
        raise ValueError(f"{path}: contains no API key; `slm keys add {path}` adds one")
    names = [key.name for key in keys]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        raise ValueError(f"{path}: the name {duplicate!r} is not unique; rate limits go by name")
    return tuple(keys)


def _read_text(path: Path | str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such file of API keys; `slm keys add {path}` creates one"
        ) from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a file of API keys; {FORMAT_HINT}") from None


def _parse_lines(path: Path | str, text: str) -> list[StoredKey]:
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = LINE.fullmatch(line.strip())
        if match is None:  # the error does not quote the line: it may contain a key
            raise ValueError(f"{path}, line {number}: {FORMAT_HINT}")
        keys.append(StoredKey(*match.groups()))
    return keys


def write(path: Path | str, keys: Sequence[StoredKey]) -> None:
    """Writes the file of hashes, readable by its owner only."""
    written = files.write(path, "".join(f"{_format_line(key)}\n" for key in keys))
    os.chmod(written, 0o600)


def _format_line(key: StoredKey) -> str:
    return f"{key.name} sha256:{key.hash}"
