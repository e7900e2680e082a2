"""C++ sources: compiled once for this processor, cached for the user, loaded by ctypes.

Invariant: a library is loaded only if this user compiled it from this very source, with this
compiler and for this processor.
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

import torch  # loads the OpenMP runtime whose threads are to be shared

from slm_fn.core import device as devices
from slm_fn.core import files, host

FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp", "-ffp-contract=fast")
"""Arguments of the compiler."""


class Unavailable(RuntimeError):
    """No compiled library is available, and the message says why: use the Python implementation."""


@cache
def load(source: Path) -> ctypes.CDLL:
    """Returns the library compiled from one C++ source; the first time takes some seconds.

    Raises:
        Unavailable: no suitable compiler, or no folder for the library.
    """
    command = _compiler_command()
    try:
        return _load_or_compile(source, command)
    except subprocess.CalledProcessError as error:
        messages = error.stderr.decode(errors="replace").strip().splitlines()
        reason = messages[0] if messages else error
        compiler = shlex.join(command)
        raise Unavailable(f"{compiler} cannot compile {source.name}: {reason}") from None
    except (OSError, ValueError, RuntimeError, subprocess.TimeoutExpired) as error:
        # RuntimeError: there is no home directory.
        raise Unavailable(f"{source.name} cannot be compiled here: {error}") from None


def _compiler_command() -> list[str]:
    """Returns the C++ compiler and its arguments in `CXX`, or the first compiler on the path.

    Raises:
        Unavailable: there is none, or `CXX` cannot be split into arguments.
    """
    obstacle = devices.compile_obstacle(torch.device("cpu"))
    on_path = (name for name in ("g++", "clang++", "c++") if which(name))
    compiler = os.environ.get("CXX", "").strip() or next(on_path, "")
    if obstacle or not compiler or os.name != "posix":
        raise Unavailable(obstacle or "there is no g++ or clang++ on the path")
    try:
        return shlex.split(compiler)
    except ValueError as error:
        raise Unavailable(f"CXX {compiler!r} cannot name a compiler: {error}") from None


def _load_or_compile(source: Path, command: list[str]) -> ctypes.CDLL:
    openmp = _loaded_openmp()
    library = _cache_folder() / f"{source.stem}-{_fingerprint(source, command, openmp)}.so"
    if not library.is_file():
        files.write(library, _compile(command, source, link_openmp=not openmp))
    if openmp:
        # Two thread pools that spin while they wait would compete for the processor.
        ctypes.CDLL(openmp, mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(library))


def _fingerprint(
    source: Path,
    command: list[str],
    openmp: str,
) -> str:
    """Returns a hash of everything that the compiled library depends on."""
    version = subprocess.run(
        [*command, "--version"], capture_output=True, check=True, timeout=60
    ).stdout
    settings = (command, FLAGS, host.processor_name(), host.cpu_flags(), openmp)
    inputs = [source.read_bytes(), version, repr(settings).encode()]
    return hashlib.sha256(b"\0".join(inputs)).hexdigest()[:32]


def _compile(
    command: list[str],
    source: Path,
    link_openmp: bool,
) -> bytes:
    """Returns the bytes of the compiled library.

    Args:
        command: the compiler.
        source: the C++ file.
        link_openmp: links the compiler's own OpenMP, where PyTorch has not loaded one already.
    """
    with tempfile.TemporaryDirectory() as folder:
        object_file = Path(folder) / "made.o"
        library = Path(folder) / "made.so"
        compile_command = [*command, *FLAGS, "-c", str(source), "-o", str(object_file)]
        subprocess.run(compile_command, capture_output=True, check=True, timeout=300)
        openmp_flags = ["-fopenmp"] if link_openmp else []
        link_command = [*command, "-shared", *openmp_flags, str(object_file), "-o", str(library)]
        subprocess.run(link_command, capture_output=True, check=True, timeout=60)
        return library.read_bytes()


def _loaded_openmp() -> str:
    """Returns the path of PyTorch's own libgomp; "" where it brought another OpenMP."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(maxsplit=5)[5] for line in lines if "/libgomp" in line), "")


def _cache_folder() -> Path:
    """Returns the folder for compiled libraries, to which no other user can write.

    Raises:
        OSError: another user can.
    """
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG standard ignores relative paths.
    root = configured if configured.is_absolute() else Path.home() / ".cache"
    folder = root / "slm_fn"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise OSError(f"{folder} belongs to another user, or others may write there")
    return folder
