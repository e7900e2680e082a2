"""The log of a run on the disk: run.json, metrics.jsonl and samples.jsonl.

Invariant: after a resume at step k the log holds no line beyond k, so it reads as if never
interrupted.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from slm_fn.core import files

METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
RUN_INFO = "run.json"


def truncate_after(run: Path, step: int) -> None:
    """Drops all lines of later steps; a line cut short by a crash goes too.

    Args:
        run: the run folder.
        step: the step at which the run resumes.
    """
    for name in (METRICS, SAMPLES):
        path = run / name
        if path.is_file():
            lines = path.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if _step_of(line) <= step]
            files.write(path, b"".join(kept))


def append(path: Path, row: dict[str, Any]) -> None:
    """Appends a row to a `.jsonl` file, as one JSON object on a line of its own."""
    with open(path, "ab") as file:
        file.write(msgspec.json.encode(row) + b"\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns every complete line of a `.jsonl` file; none if there is no file."""
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return [msgspec.json.decode(line) for line in lines if _step_of(line) != math.inf]


def update_info(run: Path, **values: Any) -> None:
    """Changes values of run.json, as `status`; the others stay."""
    path = run / RUN_INFO
    info = msgspec.json.decode(path.read_bytes())
    write_info(run, {**info, **values})


def read_info(run: Path) -> dict[str, Any]:
    """Returns what run.json holds; nothing if there is no file."""
    path = run / RUN_INFO
    if not path.is_file():
        return {}
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])


def write_info(run: Path, info: dict[str, Any]) -> None:
    """Writes run.json."""
    files.write(run / RUN_INFO, msgspec.json.format(msgspec.json.encode(info)) + b"\n")


def _step_of(line: bytes) -> float | int:
    """The step of a line; infinity if the line is not complete."""
    if not line.endswith(b"\n"):
        return math.inf
    try:
        step: float | int = msgspec.json.decode(line)["step"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return math.inf
    return step
