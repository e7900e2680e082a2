"""The folder of one prepared source: what it contains, its journal, and at the end its metadata.

    part_00000.jsonl ...   part_00000.dedup.safetensors ...
    state.json (while unfinished)   metadata.json (when finished)

Conversations are in part_00000.chat.jsonl, pairs in part_00000.pairs.jsonl, which reading a
folder's texts skips.

Invariant: what `load` returns is all that the folder contains; files that a killed process left
and no journal lists are removed.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from slm_fn.core import files
from slm_fn.data.io.hub import StreamCursor

FORMAT_VERSION = 1
STATE = "state.json"
METADATA = "metadata.json"
S = TypeVar("S", bound=msgspec.Struct)


class PartFile(msgspec.Struct, frozen=True):
    """One file of JSONL: its name, number of documents, size in bytes, and checksum."""

    file: str
    documents: int
    bytes: int
    sha256: str


class SourceCounts(msgspec.Struct, frozen=True):
    """What happened to a source's documents: `read` is `kept` plus everything under `removed`.

    Attributes:
        read: documents read.
        kept: documents kept.
        changed: documents kept after a rule edited them.
        bytes_read: bytes of text read, in UTF-8.
        bytes_kept: bytes of text kept, in UTF-8.
        problems: inputs that could not be read; not among `read`.
        removed: documents removed, by rule.
        dropped: what the chat converter repaired or rejected, by reason; not among `read`.
    """

    read: int = 0
    kept: int = 0
    changed: int = 0
    bytes_read: int = 0
    bytes_kept: int = 0
    problems: int = 0
    removed: dict[str, int] = {}
    dropped: dict[str, int] = {}


class SourceState(msgspec.Struct, frozen=True):
    """The journal of an unfinished source.

    Attributes:
        settings: the settings it is prepared with.
        source: the files or the commit it is prepared from.
        rows: the number of rows already taken.
        limit_reached: whether a limit ended the source.
        cursor: where the hub resumes.
        parts: the part files written.
        counts: what happened to the documents of those rows.
    """

    settings: dict[str, Any]
    source: dict[str, Any]
    rows: int = 0
    limit_reached: bool = msgspec.field(default=False, name="full")
    cursor: StreamCursor | None = msgspec.field(default=None, name="place")
    parts: tuple[PartFile, ...] = ()
    counts: SourceCounts = SourceCounts()


class SourceMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of `metadata.json` for a finished source.

    Attributes:
        format_version: the version of this format.
        name: the source's name.
        digest: the SHA-256 of `settings`.
        settings: the settings it was prepared with.
        source: the files or the commit it was prepared from.
        counts: what happened to its documents.
        tokens_estimated: the tokens kept, estimated from bytes.
        parts: the part files.
        versions: versions of software and data that the text depends on.
    """

    format_version: int = FORMAT_VERSION
    name: str
    digest: str
    settings: dict[str, Any]
    source: dict[str, Any]
    counts: SourceCounts
    tokens_estimated: int
    parts: tuple[PartFile, ...]
    versions: dict[str, str]


def load(folder: Path) -> SourceMetadata | SourceState | None:
    """Return what a folder contains: a finished source, an unfinished one, or nothing.

    Part files that a killed process left and the journal does not list are removed, before their
    digests could be taken for those of kept texts.

    Raises:
        ValueError: the files are not a prepared source, or the journal cannot be read.
    """
    if not folder.is_dir():
        return None
    files.remove_leftovers(folder)
    metadata = _read(folder / METADATA, SourceMetadata)
    if metadata is not None:
        (folder / STATE).unlink(missing_ok=True)
        return metadata
    state = _read(folder / STATE, SourceState)
    if state is None:
        if not any(folder.iterdir()):
            return None
        raise ValueError(
            f"{folder} holds files that are no prepared source; choose another --out or name"
        )
    for file in folder.glob("part_*"):
        part_number = int(file.name[5:10])
        if part_number >= len(state.parts):
            file.unlink()
    return state


def save_state(folder: Path, state: SourceState) -> None:
    """Write the journal, atomically."""
    files.write(folder / STATE, _encode(state))


def finish(folder: Path, metadata: SourceMetadata) -> SourceMetadata:
    """Write the metadata, which marks the source as finished, and remove its journal."""
    files.write(folder / METADATA, _encode(metadata))
    (folder / STATE).unlink(missing_ok=True)
    return metadata


def remove(folder: Path) -> None:
    """Remove a source's folder; if killed meanwhile, `files.remove_leftovers` removes the rest."""
    if folder.is_dir():
        aside = folder.with_name(f"{files.TEMPORARY_PREFIX}old-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)
        shutil.rmtree(aside)


def _encode(value: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value, order="deterministic"), indent=2) + b"\n"


def _read(path: Path, struct_type: type[S]) -> S | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=struct_type)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise ValueError(
            f"{path} cannot be decoded: {error}; remove the folder {path.parent} and run again"
        ) from None
