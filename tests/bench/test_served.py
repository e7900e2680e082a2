"""bench/served.py: memory of a process, and servers that do not start."""

import os
import subprocess
import sys

import pytest

from slm_fn.bench import served


def test_resident_tells_what_a_process_holds():
    hold = "x = bytearray(80 << 20); x[::4096] = b'1' * len(x[::4096]); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline()
        assert 80 << 20 < served.resident(process.pid) < 160 << 20
        process.kill()
    assert served.resident(os.getpid()) > 80 << 20
    with pytest.raises(ProcessLookupError, match="ps knows no process"):
        served.resident(process.pid)


def test_a_server_that_does_not_start_is_told():
    with pytest.raises(ValueError, match="slm serve nowhere ended with status 2"), served.slm("nowhere", 1):
        pass
