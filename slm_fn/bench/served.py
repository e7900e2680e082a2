"""Servers as processes of their own: `slm serve`, llama.cpp with slots; and what memory such a process holds.

Invariant: a server that was started here is gone when its block is left, however it is left.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

STOP_SECONDS = 60


class Served(NamedTuple):
    """Where a server listens, its process, and the name of its model."""

    url: str
    process: Any
    name: str


@contextmanager
def slm(model: Path, threads: int, options: Sequence[str] = ()) -> Iterator[Served]:
    """`slm serve MODEL` on a free port of this machine.

    Raises:
        ValueError: it ended before it listened; its own words say why.
    """
    command = [sys.executable, "-m", "slm_fn.cli.main", "serve", str(model), "--port", "0", "--name", "served"]
    process = subprocess.Popen(
        [*command, *options],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if not os.environ.get("SLM_DEBUG") else None,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            if len(words) < 3:
                raise ValueError(f"slm serve {model} ended with status {process.wait()}; start it by hand to see why")
            yield Served(words[2].rstrip("/"), process, "served")
        finally:
            process.kill()


@contextmanager
def llama_cpp(gguf: Path, slots: int, threads: int, context: int) -> Iterator[Served]:
    """llama.cpp's server with a slot for each of some requests, through the package xllamacpp.

    Raises:
        ValueError: the package is not installed, or the file cannot be served.
    """
    context_of = multiprocessing.get_context("spawn")
    here, there = context_of.Pipe()
    process = context_of.Process(target=_llama_cpp, args=(str(gguf), slots, threads, context, there), daemon=True)
    process.start()
    there.close()
    try:
        address = here.recv()
        if not address.startswith("http"):
            raise ValueError(f"llama.cpp with {gguf}: {address}")
        yield Served(address.rstrip("/"), process, "llama.cpp")
    except EOFError:
        raise ValueError(f"llama.cpp could not serve {gguf}") from None
    finally:
        process.kill()
        process.join()


def _llama_cpp(gguf: str, slots: int, threads: int, context: int, tell: Any) -> None:
    try:
        import xllamacpp
    except ImportError:
        tell.send("install xllamacpp to measure beside llama.cpp")
        return
    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.n_parallel, params.n_ctx = slots, slots * context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_gpu_layers = 0
    server = xllamacpp.Server(params)
    tell.send(server.listening_address)
    multiprocessing.Event().wait()


def resident(pid: int) -> int:
    """The bytes of memory that a process holds; by `ps`, which Linux and macOS have.

    Raises:
        OSError: nobody tells, or there is no such process.
    """
    done = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        raise ProcessLookupError(f"ps knows no process {pid}")
    return 1024 * int(done.stdout)
