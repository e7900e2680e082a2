"""What the machine has: the device chosen by "auto", the precision it is fast in, threads, memory.

Invariant: the only module that names a backend. Everyone else is handed a device, a dtype, a flag.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from shutil import which
from typing import Any, TypeVar

import torch
from torch import Tensor

from slm_fn.core import host, tree
from slm_fn.core.types import Apply, Params

R = TypeVar("R")
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
    """`auto`, `float32`, `tf32`, `bfloat16` or `float16` as a dtype; tf32 is float32, with `allow_tf32`.

    Raises:
        ValueError: another name.
    """
    if name == "auto":
        return precision(device)
    if name not in ("float32", "tf32", "bfloat16", "float16"):
        raise ValueError(f"precision {name!r} is not one of auto, float32, tf32, bfloat16, float16")
    return torch.float32 if name == "tf32" else getattr(torch, name)


def allow_tf32(allowed: bool) -> None:
    """Let float32 products round their factors to 10 bits, on hardware that is faster so; elsewhere nothing changes."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")


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


FEW_ROWS = 32
"""Up to so many rows an INT8 product takes a kernel that reads weights as they are; beyond, to widen them is faster."""


def has_int8_kernel(x: Tensor, num_rows: int) -> bool:
    """Whether `x @ q.T * scale` has a kernel for few rows; it has no gradient, and reads whole vectors or beyond."""
    if x.device.type != "cpu" or num_rows > FEW_ROWS or num_rows == 0 or x.shape[-1] % 32:
        return False
    plain = not torch._C._functorch.is_functorch_wrapped_tensor(x)
    differentiated = x.requires_grad and torch.is_grad_enabled()
    return plain and not differentiated and x.dtype in (torch.float32, torch.bfloat16)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was told; a clock read before that lies."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def lacks_for_compiling(device: torch.device) -> str:
    """What keeps torch.compile from working on a device, or nothing."""
    if device.type == "mps" or platform.system() == "Darwin":
        return "compiled code gives NaN on some Macs (pytorch 171764)"
    if device.type == "cuda":
        return "" if find_spec("triton") else "triton is not installed"
    compiler = os.environ.get("CXX") or next((name for name in ("g++", "c++", "clang++", "cl") if which(name)), None)
    return "" if compiler else "there is no C++ compiler (g++ or clang++) on the path"


def can_capture(device: torch.device) -> bool:
    """Whether a device can record what it is told as a graph and replay it."""
    return device.type == "cuda"


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Work on a stream of its own, as graphs want what comes before their recording; elsewhere nothing changes."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


def shared_memory(device: torch.device) -> Any:
    """Memory for recordings that never run at once: hand it to each `record`. None where nothing is recorded."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


def record(device: torch.device, work: Callable[[], R], memory: Any = None) -> Callable[[], R]:
    """Record work that reads and writes fixed tensors, without doing it: each call of the result does it.

    What the work returns lies in tensors of the graph, which the next call overwrites. All else that it makes lies in
    `memory`, by default the recording's own, and is lost once another recording there has run. Where nothing can be
    recorded, it is the work itself.
    """
    if device.type != "cuda":
        return work
    graph = torch.cuda.CUDAGraph()
    # Other threads may allocate meanwhile: batches are prefetched.
    with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
        result = work()

    def replay() -> R:
        graph.replay()
        return result

    return replay


def upload(batch: Any, device: torch.device) -> Any:
    """A batch from the host on a device; from pinned memory and without waiting where that is faster."""
    if device.type != "cuda":
        return tree.to_device(batch, device)
    return tree.map(lambda x: x.pin_memory().to(device, non_blocking=True), batch)


def peak_memory(device: torch.device) -> int:
    """The most memory this process has held so far, in bytes: on the device, or resident where that is the CPU.

    0 where the platform does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return host.peak_memory()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
        (True, False)
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # On CPUs and on MPS it is a RuntimeError like any other, and cuBLAS has its own words.
    words = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED", "bad_alloc")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in words)


def release_memory(device: torch.device) -> None:
    """Give back what the device's allocator holds and nobody uses."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def set_threads(num_threads: int) -> int:
    """Set the number of CPU threads (0 leaves it) and return what is in force; sums depend on it in their last bits."""
    if num_threads > 0 and num_threads != torch.get_num_threads():
        torch.set_num_threads(num_threads)
    return torch.get_num_threads()


def name_of(device: torch.device) -> str:
    """The chip's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "Apple GPU" if device.type == "mps" else host.processor()


def describe() -> dict[str, Any]:
    """Devices, precisions, memory in MiB and threads, as plain JSON values."""
    devices: list[dict[str, Any]] = []
    for kind in available():
        device = torch.device(kind)
        memory = total_memory(device)
        told = {"device": kind, "name": name_of(device), "memory_mib": None if memory is None else memory >> 20}
        devices.append({**told, "precision": str(precision(device)).removeprefix("torch.")})
    return {
        "auto": available()[0],
        "devices": devices,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def total_memory(device: torch.device) -> int | None:
    """How much memory there is in bytes, on the device or in the machine; None where the platform does not tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return host.total_memory()


def free_memory(device: torch.device) -> int | None:
    """How much of it nobody uses now, in bytes; None where the platform does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return host.free_memory()
