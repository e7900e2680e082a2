"""Medians and ratios over rounds; every call has a process of its own."""

import os
from functools import partial

from slm_fn.bench.rounds import Comparison, TimedRun, run_rounds


def test_ratios_and_medians_are_over_rounds() -> None:
    runs = {
        "own": [TimedRun(1.0, 10), TimedRun(2.0, 30), TimedRun(4.0, 20)],
        "peer": [TimedRun(3.0, 1), TimedRun(4.0, 1), TimedRun(4.0, 1)],
    }
    comparison = Comparison(runs)
    assert comparison.median_seconds("own") == 2
    assert comparison.speedup("own", "peer") == 2
    assert comparison.median_peak_mib("own") == 20


def test_every_call_has_a_process_of_its_own() -> None:
    notes: list[str] = []
    results = run_rounds({"a": os.getpid, "b": partial(divmod, 7, 2)}, 2, notes.append, repr)
    assert len({os.getpid(), *results["a"]}) == 3
    assert results["b"] == [(3, 1), (3, 1)]
    assert notes[1] == "b, round 1 of 2: (3, 1)"
    assert [note.partition(":")[0][-6:] for note in notes] == ["1 of 2"] * 2 + ["2 of 2"] * 2
