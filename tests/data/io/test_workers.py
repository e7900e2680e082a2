"""Batches come back in order, few are in flight, an error is raised at its position."""

import operator
import os
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import count

import pytest

from slm_fn.data.io.workers import map_in_order


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_keep_their_order(workers):
    double = partial(operator.mul, 2)
    assert list(map_in_order(range(50), double, workers)) == [(i, 2 * i) for i in range(50)]


@pytest.mark.parametrize(("workers", "max_ahead"), [(0, 1), (2, 5)])
def test_few_batches_are_in_flight(workers, max_ahead):
    read = []

    def batches():
        for i in count():
            read.append(i)
            yield i

    stream = map_in_order(batches(), operator.neg, workers)
    for i in range(20):
        assert next(stream) == (i, -i)
        assert len(read) <= i + max_ahead
    stream.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_is_raised_at_its_position(workers):
    stream = map_in_order([1, 0, 2], partial(operator.truediv, 1), workers)
    assert next(stream) == (1, 1.0)
    with pytest.raises(ZeroDivisionError):
        next(stream)


def test_workers_end_with_a_process_that_was_killed():
    program = (
        "import operator, multiprocessing\nfrom itertools import count\n"
        "from slm_fn.data.io.workers import map_in_order\n"
        "if __name__ == '__main__':\n"
        "    stream = map_in_order(count(), operator.neg, 2)\n"
        "    for _ in range(40): next(stream)\n"
        "    print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
        "    input()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert children
        parent.send_signal(signal.SIGKILL)
    for _ in range(400):
        if not any(alive(pid) for pid in children):
            return
        time.sleep(0.05)
    raise AssertionError(f"still there: {[pid for pid in children if alive(pid)]}")


def alive(pid):
    """Whether a process runs; a zombie, which ended and was not waited for, does not."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:  # no /proc on this system, or it ended just now
        return os.path.isdir("/proc") is False
