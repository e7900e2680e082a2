"""Seconds of `slm --help`: the time that each command takes before it does anything.

Usage: `python tests/bench/startup.py [REPEATS]`. Prints one JSON object: the median and the best
time of fresh processes.
"""

import json
import statistics
import subprocess
import sys
import time

COMMAND = [sys.executable, "-m", "slm_fn.cli.main", "--help"]


def main(repeats: int) -> dict[str, float]:
    """Measures some runs and returns the figures."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run(COMMAND, capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
    return {"help_seconds": statistics.median(seconds), "best_help_seconds": min(seconds)}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)))
