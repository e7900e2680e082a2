"""Run folders: read them, find them, and summarise them as rows of a table.

Invariant: reads run.json and metrics.jsonl only; a run in progress is summarised up to its last
line.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from slm_fn.train import run_log

STALE_SECONDS = 120.0
"""A run that is marked as running and wrote nothing for this long counts as stopped.

A run whose log lines are further apart is given five times its longest interval.
"""
NUM_RECENT_LINES = 20
"""Log lines from which the interval between lines is taken."""
Status = Literal["running", "done", "stopped", "failed"]


class Run(NamedTuple):
    """A run folder.

    Attributes:
        path: the folder.
        info: the content of run.json.
        rows: the lines of metrics.jsonl.
    """

    path: Path
    info: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def last_row(self) -> dict[str, Any]:
        """The last line of metrics.jsonl; empty if there is none."""
        return self.rows[-1] if self.rows else {}

    def column(self, key: str) -> list[tuple[int, float]]:
        """Returns (row index, value) for each row in which `key` is a number."""
        cells = [(i, row.get(key)) for i, row in enumerate(self.rows)]
        return [(i, float(value)) for i, value in cells if isinstance(value, int | float)]

    def values(self, key: str) -> list[float]:
        """Returns the numbers of a column."""
        return [value for _, value in self.column(key)]

    def column_names(self) -> list[str]:
        """Returns every key of the rows, in order of first appearance."""
        names: dict[str, None] = {}
        for row in self.rows:
            names |= dict.fromkeys(row)
        return list(names)


def read(path: Path | str) -> Run:
    """Reads run.json and metrics.jsonl of a run folder.

    Raises:
        ValueError: the folder is not a run folder, or its run.json cannot be read.
    """
    path = Path(path)
    info_file = path / run_log.RUN_INFO
    try:
        info = msgspec.json.decode(info_file.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        raise ValueError(
            f"{path}: not a run folder (it has no {run_log.RUN_INFO}); `slm runs` lists run folders"
        ) from None
    except msgspec.MsgspecError as error:
        raise ValueError(f"{info_file}: {error}") from None
    return Run(path, info, run_log.read_rows(path / run_log.METRICS))


def find(root: Path | str) -> list[Run]:
    """Reads every run in a folder and its sub-folders, oldest first."""
    info_files = sorted(Path(root).rglob(run_log.RUN_INFO))
    runs = [read(file.parent) for file in info_files]
    return sorted(runs, key=lambda run: run.info.get("started", ""))


def seconds_since_update(run: Run, now: float) -> float:
    """Returns the seconds since a run wrote its last line, or since it began if it wrote none.

    Args:
        run: the run.
        now: the current time in seconds since the epoch.
    """
    files = [run.path / run_log.METRICS, run.path / run_log.RUN_INFO]
    updated = max(file.stat().st_mtime for file in files if file.is_file())
    return max(0.0, now - updated)


def status(run: Run, now: float) -> Status:
    """Returns the status of a run: that of run.json unless the run was killed.

    A killed run is still marked as running in run.json. It counts as done if it reached its last
    step, and as stopped if it has written nothing for a while (`STALE_SECONDS`).

    Args:
        run: the run.
        now: the current time in seconds since the epoch.
    """
    recorded: Status = run.info.get("status", "running")
    if recorded != "running":
        return recorded
    if run.last_row.get("step", 0) == run.info.get("total_steps"):
        return "done"
    times = run.values("seconds")[-NUM_RECENT_LINES:]
    intervals = [after - before for before, after in pairwise(times)]
    limit = max(STALE_SECONDS, 5 * max(intervals, default=0.0))
    return "running" if seconds_since_update(run, now) <= limit else "stopped"


def summarize(runs: Sequence[Run], now: float | None = None) -> list[dict[str, Any]]:
    """Returns one row for each run: its status, progress, losses, speed, device and age.

    Args:
        runs: the runs.
        now: the current time in seconds since the epoch. Default: the clock's.
    """
    if now is None:
        now = time.time()
    return [_summarize_run(run, now) for run in runs]


def _summarize_run(run: Run, now: float) -> dict[str, Any]:
    last_row = run.last_row
    train_losses = run.values("train_loss")
    val_losses = run.values("val_loss")
    return {
        "run": str(run.path),
        "stage": run.info.get("stage"),
        "status": status(run, now),
        "step": last_row.get("step", 0),
        "total_steps": run.info.get("total_steps"),
        "tokens": last_row.get("tokens", 0),
        "train_loss": _last(train_losses),
        "val_loss": _last(val_losses),
        "best_val_loss": min(val_losses, default=None),
        "tok_per_s": _upper_median(run.values("tok_per_s")),
        "skipped": last_row.get("skipped", 0),
        "seconds": last_row.get("seconds"),
        "device": run.info.get("device"),
        "started": run.info.get("started"),
        "age_seconds": round(seconds_since_update(run, now), 1),
        "hooks": run.info.get("hook_list", []),
    }


def _last(values: Sequence[float]) -> float | None:
    return values[-1] if values else None


def _upper_median(values: Sequence[float]) -> float | None:
    """Returns the middle value; of an even number of values the greater of the two."""
    if not values:
        return None
    return sorted(values)[len(values) // 2]


def short_names(runs: Sequence[Run]) -> list[str]:
    """Returns a name for each run: its path without the folders that all runs share.

    Example:
        >>> short_names([Run(Path("out/a/sft"), {}, []), Run(Path("out/b/sft"), {}, [])])
        ['a/sft', 'b/sft']
    """
    paths = [run.path.resolve().parts for run in runs]
    num_shared = 0
    # The last component of a path always stays.
    while all(len(parts) > num_shared + 1 for parts in paths):
        components = {parts[num_shared] for parts in paths}
        if len(components) > 1:
            break
        num_shared += 1
    return ["/".join(parts[num_shared:]) for parts in paths]
