"""The readable files at a path: the file itself, or all files below a folder, sorted.

Invariant: a file that looks like data but cannot be read (no permission, a pipe, a broken link) is
reported, and no pipe is opened.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from slm_fn.data.io.formats import CODECS, SUFFIXES, detect_format, printable_path
from slm_fn.data.io.problems import OnProblem, ProblemReporter


def list_files(path: Path | str, on_problem: OnProblem | None = None) -> list[Path]:
    """List the readable files at a path, sorted by their path relative to it.

    Files and folders whose name begins with a dot are ignored. Links are followed; each folder is
    entered once.

    Args:
        on_problem: receives one line for each file or folder that cannot be read, and for a folder
            that contains nothing to read.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the path is a file of another kind; or, without `on_problem`, a problem.
    """
    path = Path(path)
    reporter = ProblemReporter(on_problem)
    kinds = ", ".join(SUFFIXES)
    if not os.path.lexists(path):
        raise FileNotFoundError(f"no file or folder at {printable_path(path)}")
    if not path.is_dir():
        if detect_format(path.name) is None:
            raise ValueError(
                f"{printable_path(path)} is not one of {kinds}, or these with "
                f"{' or '.join(CODECS)}; rename it or convert it"
            )
        return [path] if _is_readable(str(path), reporter) else []
    files = _list_below(str(path), reporter)
    if not files and not reporter.num_problems:
        reporter.report(f"the corpus is empty: no {kinds} files below {printable_path(path)}")
    return sorted(map(Path, files), key=lambda file: file.relative_to(path).as_posix())


def _list_below(top: str, reporter: ProblemReporter) -> list[str]:
    """List the readable files below a folder, without recursion: a tree can exceed its limit."""
    files: list[str] = []
    pending = [top]
    entered: set[tuple[int, int]] = set()
    while pending:
        folder = pending.pop()
        try:
            status = os.stat(folder)
            names = sorted(os.listdir(folder))
        except OSError as error:
            reporter.report(
                f"{printable_path(folder)}: {error.strerror}; the folder is left out; "
                "change its permissions or move it away"
            )
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in entered:  # reached through a second link; its files are listed already
            continue
        entered.add(identity)
        visible = [name for name in names if not name.startswith(".")]
        for name in visible:
            path = os.path.join(folder, name)
            if os.path.isdir(path):
                pending.append(path)
            elif detect_format(name) is not None and _is_readable(path, reporter):
                files.append(path)
    return files


def _is_readable(path: str, reporter: ProblemReporter) -> bool:
    """Whether a path can be opened as a regular file; if not, the reason is reported."""
    reason = _unreadable_reason(path)
    if reason:
        reporter.report(f"{printable_path(path)}: {reason}; left out")
    return not reason


def _unreadable_reason(path: str) -> str:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if os.path.islink(path):
            return "a broken or circular link"
        return str(error.strerror)
    if not stat.S_ISREG(mode):
        return "a pipe, socket or device, not a file"
    return "" if os.access(path, os.R_OK) else "no permission to read it"
