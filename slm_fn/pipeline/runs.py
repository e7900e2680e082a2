"""Runs on the disk: found, read, and summed up in a table: how far, how well, how fast, and whether they live.

Invariant: reads run.json and metrics.jsonl alone; a run that is being written is shown as far as it got.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from slm_fn.train import runlog

SILENCE = 120.0
"""Seconds without a line after which a run may be dead; longer where its lines lie further apart."""
Status = Literal["running", "done", "stopped", "failed"]


class Run(NamedTuple):
    """A run folder: what run.json tells, and every line of metrics.jsonl."""

    path: Path
    told: dict[str, Any]
    rows: list[dict[str, Any]]

    def column(self, key: str) -> list[tuple[int, float]]:
        """(line, value) of each line that has a number by this name."""
        found = ((i, row.get(key)) for i, row in enumerate(self.rows))
        return [(i, float(value)) for i, value in found if isinstance(value, int | float)]

    def names(self) -> list[str]:
        """Every name that a line has, in order of appearance."""
        return list(dict.fromkeys(key for row in self.rows for key in row))


def read(path: Path | str) -> Run:
    """The run in a folder.

    Raises:
        ValueError: the folder holds no run, or its run.json cannot be read.
    """
    path = Path(path)
    try:
        told = msgspec.json.decode((path / runlog.RUN).read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no run folder (a run holds {runlog.RUN}); `slm runs` lists those there are"
        ) from None
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path / runlog.RUN}: {error}") from None
    return Run(path, told, runlog.read(path / runlog.METRICS))


def find(root: Path | str) -> list[Run]:
    """Every run under a folder, oldest first."""
    found = [read(path.parent) for path in sorted(Path(root).rglob(runlog.RUN))]
    return sorted(found, key=lambda run: run.told.get("started", ""))


def age(run: Run, now: float) -> float:
    """Seconds since a run wrote its last line (or began)."""
    files = (run.path / name for name in (runlog.METRICS, runlog.RUN))
    return max(0.0, now - max(file.stat().st_mtime for file in files if file.is_file()))


def status(run: Run, now: float) -> Status:
    """What run.json says of the end; a run that was killed said nothing, and is known by its silence."""
    told: Status = run.told.get("status", "running")
    step, total = run.rows[-1]["step"] if run.rows else 0, run.told.get("total_steps")
    if told != "running":
        return told
    if step == total:
        return "done"
    clocks = [seconds for _, seconds in run.column("seconds")][-20:]
    gaps = [b - a for a, b in pairwise(clocks)]
    return "running" if age(run, now) <= max(SILENCE, 5 * max(gaps, default=0.0)) else "stopped"


def table(runs: Sequence[Run], now: float | None = None) -> list[dict[str, Any]]:
    """One row per run: where, whether it lives, how far, how well, how fast, on what, how long ago."""
    now = time.time() if now is None else now
    return [_row(run, now) for run in runs]


def _row(run: Run, now: float) -> dict[str, Any]:
    last = run.rows[-1] if run.rows else {}
    judged, losses = run.column("val_loss"), run.column("train_loss")
    rates = sorted(rate for _, rate in run.column("tok_per_s"))
    return {
        "run": str(run.path),
        "stage": run.told.get("stage"),
        "status": status(run, now),
        "step": last.get("step", 0),
        "total_steps": run.told.get("total_steps"),
        "tokens": last.get("tokens", 0),
        "train_loss": losses[-1][1] if losses else None,
        "val_loss": judged[-1][1] if judged else None,
        "best_val_loss": min((value for _, value in judged), default=None),
        "tok_per_s": rates[len(rates) // 2] if rates else None,
        "skipped": last.get("skipped", 0),
        "seconds": last.get("seconds"),
        "device": run.told.get("device"),
        "started": run.told.get("started"),
        "age_seconds": round(age(run, now), 1),
        "hooks": run.told.get("hook_list", []),
    }


def titles(runs: Sequence[Run]) -> list[str]:
    """What to call each run: its path without what all paths share.

    Example:
        >>> titles([Run(Path("out/a/sft"), {}, []), Run(Path("out/b/sft"), {}, [])])
        ['a/sft', 'b/sft']
    """
    parts = [run.path.resolve().parts for run in runs]
    shared = 0
    while all(len(each) > shared + 1 for each in parts) and len({each[shared] for each in parts}) == 1:
        shared += 1
    return ["/".join(each[shared:]) for each in parts]
