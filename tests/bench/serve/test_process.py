"""Memory of a process, and servers that do not start."""

import os
import subprocess
import sys

import pytest

from slm_fn.bench.serve import process

HOLD_80_MIB = (
    "x = bytearray(80 << 20); x[::4096] = b'1' * len(x[::4096]); print(1, flush=True); input()"
)


def test_resident_bytes_are_those_that_a_process_holds():
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_80_MIB], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout.readline()
        assert 80 << 20 < process.resident_bytes(child.pid) < 160 << 20
        child.kill()
    assert process.resident_bytes(os.getpid()) > 80 << 20
    with pytest.raises(ProcessLookupError, match="ps knows no process"):
        process.resident_bytes(child.pid)


def test_a_server_that_does_not_start_is_reported():
    with (
        pytest.raises(ValueError, match="slm serve nowhere ended with status 2"),
        process.start_slm("nowhere", 1),
    ):
        pass
