"""File formats by name: what a file holds, how it is compressed, and how its path is displayed.

Invariant: the format depends on the file's name alone, without regard to case.
"""

from __future__ import annotations

from typing import NamedTuple

KINDS = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".parquet": "parquet"}
CODECS = {".gz": "gzip", ".zst": "zstd"}
SUFFIXES = tuple(KINDS)


class FileFormat(NamedTuple):
    """The kind of a file (text, jsonl or parquet) and its compression (gzip, zstd or empty)."""

    kind: str
    codec: str


def detect_format(file: str) -> FileFormat | None:
    """Return the format that a file's name implies, or None if it is not supported.

    Example:
        >>> tuple(detect_format("a/B.JSONL.gz")), tuple(detect_format("notes.md"))
        (('jsonl', 'gzip'), ('text', ''))
        >>> detect_format("a.tar.gz") is None
        True
    """
    name = file.lower()
    codec_suffix = _find_suffix(name, CODECS)
    name = name.removesuffix(codec_suffix)
    kind_suffix = _find_suffix(name, KINDS)
    if not kind_suffix:
        return None
    return FileFormat(KINDS[kind_suffix], CODECS.get(codec_suffix, ""))


def kind_of(file: str) -> str:
    """Return `text`, `jsonl` or `parquet` by a file's name, or an empty string for any other."""
    file_format = detect_format(file)
    return "" if file_format is None else file_format.kind


def codec_of(file: str) -> str:
    """Return `gzip` or `zstd` by a file's name, or an empty string without compression."""
    file_format = detect_format(file)
    return "" if file_format is None else file_format.codec


def printable_path(path: object) -> str:
    """Return a path as one encodable line, for messages and document names, whatever its bytes."""
    text = str(path)
    return text if text.isprintable() else ascii(text)[1:-1]


def _find_suffix(name: str, suffixes: dict[str, str]) -> str:
    for suffix in suffixes:
        if name.endswith(suffix):
            return suffix
    return ""
