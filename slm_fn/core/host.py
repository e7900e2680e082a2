"""The machine around the devices: its processor and its memory.

Invariant: where a platform does not tell, neither does this; nothing here guesses.
"""

from __future__ import annotations

import ctypes
import os
import platform


def _line(path: str, name: str) -> str | None:
    """What a file of Linux's /proc says behind a name."""
    try:
        with open(path, encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(name))
    except (OSError, StopIteration):
        return None


def _bytes(path: str, name: str) -> int | None:
    found = _line(path, name)
    return None if found is None else 1024 * int(found.split()[0])


def processor() -> str:
    """The processor's name, as exact as this platform tells it."""
    return _line("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def instructions() -> str:
    """What the processor can do, in its own short words: one name may stand for many; nothing where nobody tells."""
    return _line("/proc/cpuinfo", "flags") or _line("/proc/cpuinfo", "Features") or ""


def total_memory() -> int | None:
    """How much memory the machine has, in bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None  # Windows has no sysconf


def free_memory() -> int | None:
    """How much of it a process could still have, in bytes."""
    return _bytes("/proc/meminfo", "MemAvailable:")


def peak_memory() -> int:
    """The most that this process has had resident so far, in bytes; 0 where nobody tells.

    On Linux by /proc: getrusage begins a process with its parent's peak.
    """
    found = _bytes("/proc/self/status", "VmHWM:")
    if found is not None:
        return found
    try:
        import resource
    except ImportError:
        return 0  # Windows does not tell
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def keep_freed_memory() -> bool:
    """Let the C library keep large blocks that were freed, for the next step to use again; whether it could be told.

    By default glibc hands every block of some MiB back to the kernel, and the next step pays for each page anew: a
    third of a small model's training step on a CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False  # only glibc has it
    limit, trim, mmap = (1 << 31) - 1, -1, -3
    return bool(mallopt(mmap, limit // 2 + 1) and mallopt(trim, limit))
