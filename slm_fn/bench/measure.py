"""Measuring fairly: every contestant in a process of its own, in turn, several times; medians and ratios.

Invariant: contestants of one contest see the same input in the same run, so that a ratio holds on a busy machine too.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple


class Measured(NamedTuple):
    """One run: seconds of the work alone, and by how many MiB the most that was resident exceeds what was before."""

    seconds: float
    peak_mib: float


class Contest(NamedTuple):
    """All runs of each contestant, in order."""

    runs: dict[str, list[Measured]]

    def seconds(self, name: str) -> float:
        """The median time of a contestant."""
        return statistics.median(run.seconds for run in self.runs[name])

    def peak_mib(self, name: str) -> float:
        """The median peak of a contestant's memory."""
        return statistics.median(run.peak_mib for run in self.runs[name])

    def ratio(self, name: str, peer: str) -> float:
        """How many times as fast as a peer: the median over rounds, each of which ran both."""
        pairs = zip(self.runs[name], self.runs[peer], strict=True)
        return statistics.median(other.seconds / own.seconds for own, other in pairs)


Job = tuple[Callable[..., Any], Callable[[Any], Any], tuple[Any, ...]]
"""`prepare(*arguments)` and `work(prepared)`: only the second is measured. Both are functions of a module."""


def contest(jobs: Mapping[str, Job], repeat: int, note: Callable[[str], None] = lambda line: None) -> Contest:
    """Run every job `repeat` times, round by round, each run in a new process.

    Args:
        note: told a line after every run.
    """
    runs: dict[str, list[Measured]] = {name: [] for name in jobs}
    for turn in range(repeat):
        for name, job in jobs.items():
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                done = pool.submit(_run, *job).result()
            runs[name].append(done)
            note(f"{name}, round {turn + 1} of {repeat}: {done.seconds:.2f} s, {done.peak_mib:.0f} MiB more")
    return Contest(runs)


def _run(prepare: Callable[..., Any], work: Callable[[Any], Any], arguments: tuple[Any, ...]) -> Measured:
    prepared = prepare(*arguments)
    before = _peak_mib()
    begun = time.perf_counter()
    work(prepared)
    return Measured(time.perf_counter() - begun, _peak_mib() - before)


def _peak_mib() -> float:
    """The most that was resident so far. On Linux by /proc: getrusage begins a process with its parent's peak."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    try:
        import resource
    except ImportError:
        return math.nan  # Windows does not tell
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
