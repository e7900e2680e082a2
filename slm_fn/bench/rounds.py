"""Repeated measurements: every implementation runs in a process of its own, in rounds.

Invariant: all implementations of a comparison get the same input in the same round, so that their
ratio holds on a busy machine too.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch

from slm_fn.core.device import peak_memory

Result = TypeVar("Result")
Note = Callable[[str], None]
"""Takes one line of progress."""


class TimedRun(NamedTuple):
    """Cost of one run.

    Attributes:
        seconds: time of the work alone, without its preparation.
        peak_mib: how far the process's peak memory rose above its peak before the work, in MiB.
    """

    seconds: float
    peak_mib: float


class TimedJob(NamedTuple):
    """A job of which only the second half is measured: `work(prepare())`.

    A new process runs it, so both are functions of a module, or a `functools.partial` of one.
    """

    prepare: Callable[[], Any]
    work: Callable[[Any], None]


class Comparison(NamedTuple):
    """All runs of each implementation, by name, in the order of the rounds."""

    runs: dict[str, list[TimedRun]]

    def median_seconds(self, name: str) -> float:
        """Returns the median time of an implementation."""
        return statistics.median(run.seconds for run in self.runs[name])

    def median_peak_mib(self, name: str) -> float:
        """Returns the median peak memory of an implementation."""
        return statistics.median(run.peak_mib for run in self.runs[name])

    def speedup(self, name: str, baseline: str) -> float:
        """Returns how many times as fast as a baseline an implementation is.

        It is the median of the ratios of single rounds, each of which ran both.

        Example:
            >>> runs = {"new": [TimedRun(1.0, 0.0)], "old": [TimedRun(3.0, 0.0)]}
            >>> Comparison(runs).speedup("new", "old")
            3.0
        """
        pairs = zip(self.runs[name], self.runs[baseline], strict=True)
        return statistics.median(base.seconds / own.seconds for own, base in pairs)


def no_note(line: str) -> None:
    """Discards a line of progress."""


def compare(jobs: Mapping[str, TimedJob], repeat: int, note: Note = no_note) -> Comparison:
    """Measures every job `repeat` times, each time in a new process.

    Args:
        jobs: the implementations by name.
        repeat: number of rounds.
        note: gets a line after every run.
    """
    calls = {name: partial(_measure, job) for name, job in jobs.items()}
    return Comparison(run_rounds(calls, repeat, note, _describe))


def run_rounds(
    calls: Mapping[str, Callable[[], Result]],
    repeat: int,
    note: Note = no_note,
    describe: Callable[[Result], str] = str,
) -> dict[str, list[Result]]:
    """Calls every function once per round, each time in a new process, one after another.

    Args:
        calls: the functions by name; each can be pickled.
        repeat: number of rounds.
        note: gets a line after every call.
        describe: the text of that line for a result.

    Returns:
        The results of each function, in the order of the rounds.
    """
    results: dict[str, list[Result]] = {name: [] for name in calls}
    for round_number in range(1, repeat + 1):
        for name, call in calls.items():
            result = _call_in_new_process(call)
            results[name].append(result)
            note(f"{name}, round {round_number} of {repeat}: {describe(result)}")
    return results


def _call_in_new_process(call: Callable[[], Result]) -> Result:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(call).result()


def _measure(job: TimedJob) -> TimedRun:
    prepared = job.prepare()
    peak_before = _peak_mib()
    started = time.perf_counter()
    job.work(prepared)
    return TimedRun(time.perf_counter() - started, _peak_mib() - peak_before)


def _peak_mib() -> float:
    return peak_memory(torch.device("cpu")) / (1 << 20)


def _describe(run: TimedRun) -> str:
    return f"{run.seconds:.2f} s, {run.peak_mib:.0f} MiB more"
