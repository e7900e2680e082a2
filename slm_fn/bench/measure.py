"""Measuring fairly: every contestant in a process of its own, in turn, several times; medians and ratios.

Invariant: contestants of one contest see the same input in the same run, so that a ratio holds on a busy machine too.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import torch

from slm_fn.core.device import peak_memory


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

Call = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function of a module and its arguments."""


def contest(jobs: Mapping[str, Job], repeat: int, note: Callable[[str], None] = lambda line: None) -> Contest:
    """Run every job `repeat` times, round by round, each run in a new process.

    Args:
        note: told a line after every run.
    """

    def told(done: Measured) -> str:
        return f"{done.seconds:.2f} s, {done.peak_mib:.0f} MiB more"

    return Contest(rounds({name: (_run, job) for name, job in jobs.items()}, repeat, note, told))


def rounds(
    calls: Mapping[str, Call],
    repeat: int,
    note: Callable[[str], None] = lambda line: None,
    told: Callable[[Any], str] = str,
) -> dict[str, list[Any]]:
    """What each call gave in each of `repeat` rounds; every call has a new process, in turn.

    Args:
        told: what the line to `note` says of a result.
    """
    runs: dict[str, list[Any]] = {name: [] for name in calls}
    for turn in range(repeat):
        for name, (function, arguments) in calls.items():
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                done = pool.submit(function, *arguments).result()
            runs[name].append(done)
            note(f"{name}, round {turn + 1} of {repeat}: {told(done)}")
    return runs


def _run(prepare: Callable[..., Any], work: Callable[[Any], Any], arguments: tuple[Any, ...]) -> Measured:
    prepared = prepare(*arguments)
    before = _peak_mib()
    begun = time.perf_counter()
    work(prepared)
    return Measured(time.perf_counter() - begun, _peak_mib() - before)


def _peak_mib() -> float:
    return peak_memory(torch.device("cpu")) / (1 << 20)
