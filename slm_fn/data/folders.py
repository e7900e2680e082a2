"""The readable files at a path: itself, or all below it, sorted.

Invariant: what looks like data and is no readable file (no permission, a pipe, a link to nowhere) is told, and nothing
waits for a pipe.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from slm_fn.data.formats import CODECS, SUFFIXES, Fail, kind, shown


def files_of(path: Path, fail: Fail) -> list[Path]:
    """The readable files at a path, sorted: itself, or all below it whose name does not begin with a dot.

    Links are followed, each folder is entered once.

    Args:
        fail: takes a line for each thing that cannot be read, and for a folder that holds nothing to read.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: it is a file of another kind.
    """
    kinds = ", ".join(SUFFIXES)
    if not os.path.lexists(path):
        raise FileNotFoundError(f"no file or folder at {shown(path)}")
    if not path.is_dir():
        if kind(path.name) is None:
            raise ValueError(
                f"{shown(path)} is not one of {kinds}, or these with {' or '.join(CODECS)}; rename it or convert it"
            )
        trouble = _trouble(str(path))
        if trouble:
            fail(trouble)
        return [] if trouble else [path]
    told = 0

    def tell(line: str) -> None:
        nonlocal told
        told += 1
        fail(line)

    found = _below(str(path), tell)
    if not found and not told:
        fail(f"the corpus is empty: no {kinds} files below {shown(path)}")
    return sorted(map(Path, found), key=lambda file: file.relative_to(path).as_posix())


def _below(top: str, fail: Fail) -> list[str]:
    """Without calls in calls: a tree may be deeper than they go."""
    found: list[str] = []
    ahead, entered = [top], set()
    while ahead:
        folder = ahead.pop()
        try:
            status, names = os.stat(folder), sorted(os.listdir(folder))
        except OSError as error:
            fail(f"{shown(folder)}: {error.strerror}; the folder is left out; change its permissions or move it away")
            continue
        if (status.st_dev, status.st_ino) in entered:  # a link back, or a second link: its files are read already
            continue
        entered.add((status.st_dev, status.st_ino))
        for name in names:
            path = os.path.join(folder, name)
            if name.startswith("."):
                continue
            if os.path.isdir(path):
                ahead.append(path)
            elif kind(name) is not None:
                trouble = _trouble(path)
                if trouble:
                    fail(trouble)
                else:
                    found.append(path)
    return found


def _trouble(path: str) -> str:
    """Why a path with the name of a file cannot be read, in one line, or nothing."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        link = "a link to nowhere, or round in a circle" if os.path.islink(path) else error.strerror
        return f"{shown(path)}: {link}; left out"
    if not stat.S_ISREG(mode):
        return f"{shown(path)}: a pipe, a socket or a device, and no file; left out"
    return "" if os.access(path, os.R_OK) else f"{shown(path)}: no permission to read it; left out"
