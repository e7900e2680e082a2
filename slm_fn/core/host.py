"""The machine around the devices: the name and flags of its processor, and its memory.

Invariant: where the platform does not report a value, the result says so (None, 0 or ""); none is
guessed.
"""

from __future__ import annotations

import ctypes
import os
import platform


def _read_field(path: str, name: str) -> str | None:
    """Returns the value of a `name: value` line in a file of Linux's /proc."""
    try:
        with open(path, encoding="utf-8") as lines:
            line = next(line for line in lines if line.startswith(name))
    except (OSError, StopIteration):
        return None
    return line.split(":", 1)[1].strip()


def _read_bytes(path: str, name: str) -> int | None:
    """Returns the value of a `name: value kB` line, in bytes."""
    value = _read_field(path, name)
    return None if value is None else 1024 * int(value.split()[0])


def processor_name() -> str:
    """Returns the processor's name, as exactly as this platform reports it."""
    return _read_field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def cpu_flags() -> str:
    """Returns the processor's feature flags, more exact than its name; "" if unreported."""
    x86_flags = _read_field("/proc/cpuinfo", "flags")
    return x86_flags or _read_field("/proc/cpuinfo", "Features") or ""


def total_memory() -> int | None:
    """Returns the memory of the machine, in bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None  # Windows has no sysconf


def free_memory() -> int | None:
    """Returns the memory that a process could still allocate, in bytes."""
    return _read_bytes("/proc/meminfo", "MemAvailable:")


def peak_memory() -> int:
    """Returns the most memory that was resident in this process so far, in bytes; 0 if unreported.

    On Linux it is read from /proc: getrusage starts a process with the peak of its parent.
    """
    peak_bytes = _read_bytes("/proc/self/status", "VmHWM:")
    if peak_bytes is not None:
        return peak_bytes
    try:
        import resource
    except ImportError:
        return 0  # Windows does not have the module
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def keep_freed_memory() -> bool:
    """Makes the C library keep large blocks that were freed, for the next step to use again.

    By default glibc returns every block of some MiB to the kernel, and the next step pays for
    each page anew: a third of the time of a small model's training step on a CPU.

    Returns:
        Whether the C library supports it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False  # only glibc has it
    max_int = (1 << 31) - 1
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    return bool(mallopt(mmap_threshold, max_int // 2 + 1) and mallopt(trim_threshold, max_int))
