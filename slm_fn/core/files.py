"""Atomic writes of files and folders, locks and checksums.

Invariant: under its final name a file or folder is either complete or absent, through a crash at
any moment.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"
"""The names of unfinished files and folders begin with it."""


def checksum(path: Path | str) -> str:
    """Returns the SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path: Path | str, data: bytes | str) -> Path:
    """Writes a file atomically: to a temporary name, flushed to the disk, then renamed.

    Args:
        path: missing parent folders are made.
        data: the full contents; text is encoded as UTF-8.

    Returns:
        The path.

    Raises:
        OSError: the folder cannot be written, or the disk is full; the old file is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return path


def _temporary_path(path: Path, label: str = "") -> Path:
    return path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex[:8]}-{label}{path.name}")


def check_replaceable(
    folder: Path,
    known_names: Collection[str],
    what: str,
) -> None:
    """Checks that a folder holds nothing but an older result, since it is replaced as one.

    Args:
        folder: the output folder, which need not exist.
        known_names: names of the files that such a result has.
        what: the result with its article, for the message: `a model`.

    Raises:
        ValueError: the path is a file, or the folder holds other files; they are named.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; {what} is a folder")
    others = sorted({file.name for file in folder.iterdir()} - set(known_names))
    if others:
        names = ", ".join(others[:3])
        raise ValueError(f"{folder} holds other files ({names}); name a new folder for {what}")


@contextmanager
def replace_folder(path: Path | str) -> Iterator[Path]:
    """Yields a new folder to fill, which on leaving is flushed and replaces the one at `path`.

    An error inside leaves the old folder as it was. A killed process leaves a `.tmp-` folder that
    `remove_leftovers` removes.

    Example:
        >>> import tempfile
        >>> with replace_folder(Path(tempfile.mkdtemp()) / "new") as out:
        ...     _ = (out / "a.txt").write_text("hello")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(path)
    temporary.mkdir()
    try:
        yield temporary
        _install(temporary, path, _temporary_path(path, "old-"))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def resumable_folder(path: Path | str, job: str = "") -> Iterator[Path]:
    """Yields a working folder that the same job gets again after an interruption.

    What the job puts into its sub-folder `new` replaces the folder at `path` on leaving. Any
    error other than a ValueError keeps the working folder for the next call with the same `job`;
    another job, or one without a name, starts with an empty folder. The name of the working
    folder depends on `path` alone, and one process at a time may hold it.

    Args:
        path: the folder to make or replace.
        job: a description of the work; only an equal one resumes it.

    Raises:
        ValueError: another process is writing there.

    Example:
        >>> import tempfile
        >>> with resumable_folder(Path(tempfile.mkdtemp()) / "result", "job 1") as work:
        ...     _ = (work / "new" / "a.txt").write_text("hello")
    """
    path = Path(path)
    work = path.with_name(f".{path.name}.unfinished")
    (work / "new").mkdir(parents=True, exist_ok=True)
    should_keep = True
    try:
        with exclusive_lock(work / "lock"):
            _prepare_work(work, path, job)
            try:
                yield work
                _install(work / "new", path, work / "old")
                should_keep = False
            except ValueError:
                should_keep = False
                raise
            except BaseException:
                should_keep = bool(job)
                raise
    finally:
        if not should_keep:
            shutil.rmtree(work, ignore_errors=True)


def _prepare_work(
    work: Path,
    path: Path,
    job: str,
) -> None:
    """Undoes half a replacement, and empties the working folder for another job."""
    if (work / "old").exists() and not path.exists():
        os.replace(work / "old", path)  # killed between the two renames of `_install`
    job_file = work / "job"
    is_same_job = bool(job) and job_file.is_file() and job_file.read_text(encoding="utf-8") == job
    if not is_same_job:
        _empty(work)
        write(job_file, job)
    shutil.rmtree(work / "old", ignore_errors=True)
    (work / "new").mkdir(exist_ok=True)


def _empty(work: Path) -> None:
    for item in work.iterdir():
        if item.is_dir():
            shutil.rmtree(item)
        elif item.name != "lock":
            item.unlink()


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Holds a lock file, one process at a time; the system releases it if the process is killed.

    Raises:
        ValueError: another process holds it; the message names the folder.
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
            raise ValueError(
                f"{path.parent}: another process is writing there; wait until it is done"
            ) from None
        yield


def _install(
    new: Path,
    path: Path,
    aside: Path,
) -> None:
    """Flushes a folder's files and renames it to `path`, where it replaces an old folder."""
    for item in sorted(new.rglob("*")):
        if item.is_dir():
            _sync_folder(item)
        else:
            with open(item, "rb+") as file:
                os.fsync(file.fileno())
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


def remove_leftovers(parent: Path | str) -> list[Path]:
    """Removes what killed processes left in a folder, and returns what was removed.

    Only the single writer of the folder may call it.
    """
    leftovers = sorted(Path(parent).glob(f"{TEMPORARY_PREFIX}*"))
    for item in leftovers:
        if item.is_dir():
            shutil.rmtree(item, ignore_errors=True)
        else:
            item.unlink(missing_ok=True)
    return leftovers


def _sync_folder(path: Path) -> None:
    """Flushes a folder's entries, so that a rename survives a power cut.

    Windows cannot open folders, and does not need it.
    """
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
