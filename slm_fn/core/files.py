"""Atomic files and folders, checksums: the one way anything reaches the disk.

Invariant: under its final name a file or folder is either whole or absent, through a crash at any moment.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
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
        _take_place(beside, path, path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-old-{path.name}"))
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def resumable(path: Path | str, job: str = "") -> Iterator[Path]:
    """A working folder beside `path` that the same job finds again after a kill; its `new` then takes the place.

    Whatever stops the job, a ValueError excepted, leaves the folder for the next call with the same `job`; another
    job, or one without a name, begins with an empty folder. The name depends on `path` alone, and one process at a
    time may hold it.

    Raises:
        ValueError: another process is writing there.

    Example:
        >>> import tempfile
        >>> with resumable(Path(tempfile.mkdtemp()) / "result", "job 1") as work:
        ...     _ = (work / "new" / "a.txt").write_text("hello")
    """
    path = Path(path)
    work = path.with_name(f".{path.name}.unfinished")
    (work / "new").mkdir(parents=True, exist_ok=True)
    kept = True
    try:
        with lock(work / "lock"):
            if (work / "old").exists() and not path.exists():
                os.replace(work / "old", path)  # killed between the two renames of `_take_place`
            if not job or not (work / "job").is_file() or (work / "job").read_text(encoding="utf-8") != job:
                _empty(work)
                write(work / "job", job)
            shutil.rmtree(work / "old", ignore_errors=True)
            (work / "new").mkdir(exist_ok=True)
            try:
                yield work
                _take_place(work / "new", path, work / "old")
                kept = False
            except ValueError:
                kept = False
                raise
            except BaseException:
                kept = bool(job)
                raise
    finally:
        if not kept:
            shutil.rmtree(work, ignore_errors=True)


def _empty(work: Path) -> None:
    for item in work.iterdir():
        if item.is_dir():
            shutil.rmtree(item)
        elif item.name != "lock":
            item.unlink()


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Held by one process at a time, and let go by the system when that is killed.

    Raises:
        ValueError: another process holds it; names the folder.
    """
    with open(path, "ab") as file:
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{path.parent}: another process is writing there; wait until it is done") from None
        yield


def _take_place(new: Path, path: Path, aside: Path) -> None:
    """Flush a folder's files and rename it to `path`; what is there goes aside first, then away."""
    for file in sorted(new.rglob("*")):
        if file.is_dir():
            _sync_folder(file)
        else:
            with open(file, "rb+") as handle:
                os.fsync(handle.fileno())
    _sync_folder(new)
    if path.exists():
        os.replace(path, aside)
        try:
            os.replace(new, path)
        except OSError:
            os.replace(aside, path)
            raise
        shutil.rmtree(aside)
    else:
        os.replace(new, path)
    _sync_folder(path.parent)


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
