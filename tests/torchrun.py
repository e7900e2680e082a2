"""Starting several processes by torchrun, on this machine alone."""

import os
import subprocess
import sys
from pathlib import Path


def command(num_processes: int, *program: str, restarts: int = 0) -> list[str]:
    """What a person types, with the interpreter of these tests and a free port."""
    how = ["--standalone", "--nproc-per-node", str(num_processes), "--max-restarts", str(restarts)]
    return [sys.executable, "-m", "torch.distributed.run", *how, *map(str, program)]


def environment() -> dict[str, str]:
    """One thread each; gloo on the loopback device, for a machine's own name may lead nowhere."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": loopback}


def run(num_processes: int, *program: str, restarts: int = 0, timeout: float = 240) -> str:
    """Run to the end, which must be a good one; returns what was written to standard error."""
    done = subprocess.run(
        command(num_processes, *program, restarts=restarts),
        env=environment(),
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr
