"""C++ beside the Python: compiled once for this processor, kept in the user's cache, loaded by ctypes.

Invariant: only what this user compiled from this very source with this compiler for this processor is ever loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from shutil import which

import torch  # brings the OpenMP whose threads are to be shared

from slm_fn.core import device as devices
from slm_fn.core import files, host

FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp", "-ffp-contract=fast")


class Unavailable(RuntimeError):
    """No compiled code here, and why: do without."""


@cache
def load(source: Path) -> ctypes.CDLL:
    """The library made of one C++ source, which takes some seconds the first time.

    Raises:
        Unavailable: no compiler that can, or nowhere to keep what it makes.
    """
    lacking = devices.lacks_for_compiling(torch.device("cpu"))
    compiler = os.environ.get("CXX", "").strip() or next(
        (name for name in ("g++", "clang++", "c++") if which(name)), ""
    )
    if lacking or not compiler or os.name != "posix":
        raise Unavailable(lacking or "there is no g++ or clang++ on the path")
    try:
        command = shlex.split(compiler)
        version = subprocess.run([*command, "--version"], capture_output=True, check=True, timeout=60).stdout
        runtime = _openmp()
        made_of = [
            source.read_bytes(),
            version,
            repr((command, FLAGS, host.processor(), host.instructions(), runtime)).encode(),
        ]
        name = hashlib.sha256(b"\0".join(made_of)).hexdigest()[:32]
        library = _folder() / f"{source.stem}-{name}.so"
        if not library.is_file():
            files.write(library, _compile(command, source, shared=not runtime))
        if runtime:
            # Two pools of threads that spin while they wait would take the processor from each other.
            ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(library))
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        raise Unavailable(f"{compiler} cannot compile {source.name}: {said[0] if said else error}") from None
    except (OSError, ValueError, RuntimeError, subprocess.TimeoutExpired) as error:  # a quote left open; no home
        raise Unavailable(f"{source.name} cannot be compiled here: {error}") from None


def _compile(command: list[str], source: Path, shared: bool) -> bytes:
    """The bytes of the library; `shared`: linked with the compiler's own OpenMP, not with the one that is loaded."""
    with tempfile.TemporaryDirectory() as folder:
        made, out = Path(folder) / "made.o", Path(folder) / "made.so"
        subprocess.run(
            [*command, *FLAGS, "-c", str(source), "-o", str(made)], capture_output=True, check=True, timeout=300
        )
        link = [*command, "-shared", *(["-fopenmp"] if shared else []), str(made), "-o", str(out)]
        subprocess.run(link, capture_output=True, check=True, timeout=60)
        return out.read_bytes()


def _openmp() -> str:
    """PyTorch's own libgomp, or nothing where it brought another OpenMP."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(maxsplit=5)[5] for line in lines if "/libgomp" in line), "")


def _folder() -> Path:
    """Where compiled code is kept: a folder that nobody else can write to.

    Raises:
        OSError: somebody else can.
    """
    told = Path(os.environ.get("XDG_CACHE_HOME", ""))
    root = (told if told.is_absolute() else Path.home() / ".cache") / "slm_fn"  # the XDG standard passes over others
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = root.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise OSError(f"{root} belongs to somebody else, or others may write there")
    return root
