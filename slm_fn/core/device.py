"""What the machine has: the device chosen by "auto", the precision it is fast in, threads, memory.

Invariant: the only module that names a backend. Everyone else is handed a device, a dtype, a flag.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from slm_fn.core import tree
from slm_fn.core.types import Apply, Params

KINDS = ("auto", "cpu", "cuda", "mps")


def available() -> list[str]:
    """The kinds of device this PyTorch can use, best first; `cpu` is always there."""
    found = ["cuda"] if torch.cuda.is_available() else []
    found += ["mps"] if torch.backends.mps.is_available() else []
    return [*found, "cpu"]


def resolve(name: str = "auto") -> torch.device:
    """The device a name means on this machine: `auto` is the first of cuda, mps, cpu.

    Raises:
        ValueError: no such kind or number on this machine.

    Example:
        >>> resolve("cpu")
        device(type='cpu')
    """
    found = available()
    if name == "auto":
        return torch.device(found[0])
    kind, _, number = name.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if kind not in found or not (number or "0").isdigit() or int(number or 0) >= count:
        raise ValueError(f"device {name!r} is not here; this machine has {', '.join(found)} (use auto)")
    return torch.device(name)


def of_process(device: torch.device, local_rank: int) -> tuple[torch.device, str]:
    """Which device of its machine a process takes, by its number there, and what carries tensors between processes.

    Raises:
        ValueError: more processes on this machine than devices, or a kind that serves one process only.

    Example:
        >>> of_process(torch.device("cpu"), 3)
        (device(type='cpu'), 'gloo')
    """
    if device.type == "cpu":
        return device, "gloo"
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if local_rank >= count:
        raise ValueError(
            f"process {local_rank + 1} on a machine with {count} {device.type} devices; "
            f"start torchrun with --nproc-per-node {count}, or take --device cpu"
        )
    device = torch.device(device.type, local_rank)
    torch.cuda.set_device(device)
    return device, "cpu:gloo,cuda:nccl"


def precision(device: torch.device) -> torch.dtype:
    """The dtype to multiply matrices in: bf16 where the hardware multiplies it natively, else float32.

    On CPUs that is avx512_bf16 or amx (oneDNN, about 3 times the float32 rate); bf16 on older ones is emulated.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "mps":
        return torch.bfloat16
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """`auto`, `float32` or `bfloat16` as a dtype.

    Raises:
        ValueError: another name.
    """
    if name == "auto":
        return precision(device)
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"precision {name!r} is not one of auto, float32, bfloat16")
    return getattr(torch, name)


def compute_in(dtype: torch.dtype) -> Callable[[Apply], Apply]:
    """Lift `apply -> apply`: blocks and norms cast to `dtype` on the way in, gradients come back in the masters' dtype.

    Embedding and head keep their master weights: rows are looked up exactly, and their gradient is summed in float32.
    """

    def keep(path: str) -> bool:
        return path.startswith(("embed", "head"))

    def lift(apply: Apply) -> Apply:
        def mixed(params: Params, *args: Any, **kwargs: Any) -> Any:
            cast = tree.update_in(params, lambda path, w: w if keep(path) else tree.cast(w, dtype))
            return apply(cast, *args, **kwargs)

        return mixed if dtype != torch.float32 else apply

    return lift


def prefers_fused_attention(x: Tensor) -> bool:
    """Whether SDPA's kernels beat matmul and softmax where `x` lives: on GPUs; on CPUs they lose at short lengths."""
    return x.device.type == "cuda"


def wants_contiguous(x: Tensor) -> bool:
    """Whether SDPA needs contiguous inputs to be right: on MPS permuted ones gave wrong numbers (pytorch 181133)."""
    return x.device.type == "mps"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was told; a clock read before that lies."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def set_threads(num_threads: int) -> int:
    """Set the number of CPU threads (0 leaves it) and return what is in force; sums depend on it in their last bits."""
    if num_threads > 0 and num_threads != torch.get_num_threads():
        torch.set_num_threads(num_threads)
    return torch.get_num_threads()


def processor() -> str:
    """The processor's name, as exact as this platform tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def describe() -> dict[str, Any]:
    """Devices, precisions, memory in MiB and threads, as plain JSON values."""
    devices: list[dict[str, Any]] = []
    for kind in available():
        device = torch.device(kind)
        name, memory = processor(), _host_memory_mib()
        if kind == "cuda":
            properties = torch.cuda.get_device_properties(device)
            name, memory = properties.name, properties.total_memory >> 20
        elif kind == "mps":
            name, memory = "Apple GPU", torch.mps.recommended_max_memory() >> 20
        dtype = str(precision(device)).removeprefix("torch.")
        devices.append({"device": kind, "name": name, "memory_mib": memory, "precision": dtype})
    return {
        "auto": available()[0],
        "devices": devices,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _host_memory_mib() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    except (AttributeError, ValueError, OSError):
        return None  # Windows has no sysconf
