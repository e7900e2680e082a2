"""Servers in processes of their own: `slm serve` and llama.cpp; and the memory of a process.

Invariant: a server's process ends with the `with` block that started it, however the block ends.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

STOP_SECONDS = 60
"""How long a server may take to shut down."""
MODEL_NAME = "served"


class ServerAddress(NamedTuple):
    """Where a server listens, and the name of its model."""

    url: str
    model_name: str


class SlmServer(NamedTuple):
    """A running `slm serve`."""

    address: ServerAddress
    process: subprocess.Popen[str]


@contextmanager
def start_slm(model: Path, threads: int, options: Sequence[str] = ()) -> Iterator[SlmServer]:
    """Runs `slm serve MODEL` on a free port of this machine.

    Args:
        model: a model folder.
        threads: CPU threads.
        options: further options of `slm serve`.

    Raises:
        ValueError: the server ended before it listened.
    """
    command = [sys.executable, "-m", "slm_fn.cli.main", "serve", str(model)]
    command += ["--port", "0", "--name", MODEL_NAME, *options]
    process = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        stderr=None if os.environ.get("SLM_DEBUG") else subprocess.DEVNULL,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            if len(words) < 3:
                status = process.wait()
                raise ValueError(
                    f"slm serve {model} ended with status {status}; start it by hand to see why"
                )
            yield SlmServer(ServerAddress(words[2].rstrip("/"), MODEL_NAME), process)
        finally:
            process.kill()


@contextmanager
def start_llama_cpp(
    gguf: Path, num_slots: int, threads: int, context: int
) -> Iterator[ServerAddress]:
    """Runs llama.cpp's server through the package xllamacpp.

    Args:
        gguf: the model file.
        num_slots: requests that it serves at once.
        threads: CPU threads.
        context: tokens of a slot.

    Raises:
        ValueError: the package is not installed, or the file cannot be served.
    """
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe()
    process = spawn.Process(
        target=_serve_llama_cpp, args=(str(gguf), num_slots, threads, context, sender), daemon=True
    )
    process.start()
    sender.close()
    try:
        message = receiver.recv()
        if not message.startswith("http"):
            raise ValueError(f"llama.cpp with {gguf}: {message}")
        yield ServerAddress(message.rstrip("/"), "llama.cpp")
    except EOFError:
        raise ValueError(f"llama.cpp could not serve {gguf}") from None
    finally:
        process.kill()
        process.join()


def _serve_llama_cpp(
    gguf: str, num_slots: int, threads: int, context: int, sender: Connection
) -> None:
    """Sends the server's address, or the reason that there is none, and serves until killed."""
    try:
        import xllamacpp
    except ImportError:
        sender.send("install xllamacpp to measure beside llama.cpp")
        return
    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = num_slots
    params.n_ctx = num_slots * context
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.n_gpu_layers = 0
    server = xllamacpp.Server(params)
    sender.send(server.listening_address)
    multiprocessing.Event().wait()


def resident_bytes(pid: int) -> int:
    """Returns the resident memory of a process, by `ps`, which Linux and macOS have.

    Raises:
        OSError: there is no `ps`, or no such process.
    """
    done = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    if not done.stdout.strip():
        raise ProcessLookupError(f"ps knows no process {pid}")
    return 1024 * int(done.stdout)
