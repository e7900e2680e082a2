"""Atomic files and folders, checksums: the one way anything reaches the disk.

Invariant: under its final name a file or folder is either whole or absent, through a crash at any moment.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp-"


def checksum(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path: Path | str, data: bytes | str) -> Path:
    """Write a whole file beside its place, flush it to the disk, and rename it into place.

    Raises:
        OSError: the folder cannot be written, or the disk is full; the old file is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        with open(beside, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return path


@contextmanager
def folder(path: Path | str) -> Iterator[Path]:
    """A new folder to fill; on leaving, its files are flushed and it takes its place, the old one replaced.

    An error inside leaves the old folder as it was. A killed process leaves a `.tmp-` folder that `sweep` removes.

    Example:
        >>> import tempfile
        >>> with folder(Path(tempfile.mkdtemp()) / "new") as out:
        ...     _ = (out / "a.txt").write_text("hello")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{path.name}")
    beside.mkdir()
    try:
        yield beside
        for file in sorted(beside.rglob("*")):
            if file.is_dir():
                _sync_folder(file)
            else:
                with open(file, "rb+") as handle:
                    os.fsync(handle.fileno())
        _sync_folder(beside)
        if path.exists():
            aside = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-old-{path.name}")
            os.replace(path, aside)
            try:
                os.replace(beside, path)
            except OSError:
                os.replace(aside, path)
                raise
            shutil.rmtree(aside)
        else:
            os.replace(beside, path)
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def sweep(parent: Path | str) -> list[Path]:
    """Remove what killed writers left in a folder; returns what was removed. Only for the folder's single writer."""
    left = sorted(Path(parent).glob(f"{TEMPORARY}*"))
    for item in left:
        if item.is_dir():
            shutil.rmtree(item, ignore_errors=True)
        else:
            item.unlink(missing_ok=True)
    return left


def _sync_folder(path: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut; Windows cannot open folders and needs it not."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
