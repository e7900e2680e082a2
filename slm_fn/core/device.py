"""Devices: what "auto" means, dtypes, memory, threads, graph capture.

Invariant: this is the only module that names a backend. All others receive a device, a dtype or a
flag.
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
from slm_fn.core.types import Apply, Params, Path

Result = TypeVar("Result")

KINDS = ("auto", "cpu", "cuda", "mps")
"""Device names that the commands accept; a number may follow, as in `cuda:1`."""

MAX_INT8_KERNEL_ROWS = 32
"""Up to this many rows an INT8 product uses a kernel that reads the weights as they are.

Beyond it, converting the weights first is faster.
"""

_PRECISIONS = ("auto", "float32", "tf32", "bfloat16", "float16")


def available() -> list[str]:
    """Returns the kinds of device that PyTorch can use here, fastest first; `cpu` is the last."""
    kinds = []
    if torch.cuda.is_available():
        kinds.append("cuda")
    if torch.backends.mps.is_available():
        kinds.append("mps")
    return [*kinds, "cpu"]


def resolve(name: str = "auto") -> torch.device:
    """Returns the device of that name on this machine: `auto` is the first of cuda, mps, cpu.

    Raises:
        ValueError: this machine has no device of that kind or number.

    Example:
        >>> resolve("cpu")
        device(type='cpu')
    """
    kinds = available()
    if name == "auto":
        return torch.device(kinds[0])
    kind, _, number = name.partition(":")
    num_devices = torch.cuda.device_count() if kind == "cuda" else 1
    is_number = (number or "0").isdigit()
    if kind not in kinds or not is_number or int(number or 0) >= num_devices:
        raise ValueError(
            f"device {name!r} is not available; this machine has {', '.join(kinds)} (use auto)"
        )
    return torch.device(name)


def assign_device(device: torch.device, local_rank: int) -> tuple[torch.device, str]:
    """Returns the device of one process of a distributed job, and the backend of its collectives.

    Args:
        device: the kind of device that the job runs on.
        local_rank: the number of this process on its machine.

    Raises:
        ValueError: more processes on this machine than devices.

    Example:
        >>> assign_device(torch.device("cpu"), 3)
        (device(type='cpu'), 'gloo')
    """
    if device.type == "cpu":
        return device, "gloo"
    num_devices = torch.cuda.device_count() if device.type == "cuda" else 1
    if local_rank >= num_devices:
        raise ValueError(
            f"process {local_rank + 1} on a machine with {num_devices} {device.type} devices; "
            f"start torchrun with --nproc-per-node {num_devices}, or use --device cpu"
        )
    device = torch.device(device.type, local_rank)
    torch.cuda.set_device(device)
    return device, "cpu:gloo,cuda:nccl"


def matmul_dtype(device: torch.device) -> torch.dtype:
    """Returns the dtype for matrix products: bfloat16 where the hardware multiplies it natively.

    Elsewhere float32. On CPUs native means avx512_bf16 or amx (oneDNN, about 3 times the float32
    rate); bfloat16 on older ones is emulated.
    """
    if device.type == "cuda":
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "mps":
        is_native = True
    else:
        is_native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if is_native else torch.float32


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Returns the dtype that a precision setting means on a device.

    Args:
        name: `auto`, `float32`, `tf32`, `bfloat16` or `float16`; tf32 is float32 with `allow_tf32`.
        device: decides what `auto` means.

    Raises:
        ValueError: another name.
    """
    if name not in _PRECISIONS:
        raise ValueError(f"precision {name!r} is not one of {', '.join(_PRECISIONS)}")
    if name == "auto":
        return matmul_dtype(device)
    dtype: torch.dtype = getattr(torch, "float32" if name == "tf32" else name)
    return dtype


def allow_tf32(allowed: bool) -> None:
    """Sets whether float32 products of this process may round their factors to 10 bits.

    It has an effect only on hardware that is faster with TF32.
    """
    torch.set_float32_matmul_precision("high" if allowed else "highest")


def with_compute_dtype(dtype: torch.dtype) -> Callable[[Apply], Apply]:
    """Lifts `apply -> apply`: mixed precision. Blocks and norms are cast to `dtype` in each call.

    Gradients arrive in the dtype of the original parameters. Embedding and head keep their
    precision: rows are looked up exactly, and the gradient of the head is summed in float32.
    """

    def cast_unless_vocabulary(path: Path, weight: Any) -> Any:
        if path.startswith(("embed", "head")):
            return weight
        return tree.cast(weight, dtype)

    def lift(apply: Apply) -> Apply:
        if dtype == torch.float32:
            return apply

        def mixed_precision(params: Params, *args: Any, **kwargs: Any) -> Any:
            cast_params = tree.map_with_path(params, cast_unless_vocabulary)
            return apply(cast_params, *args, **kwargs)

        return mixed_precision

    return lift


def prefers_fused_attention(x: Tensor) -> bool:
    """Whether SDPA's kernels beat matmul and softmax on the device of `x`.

    They do on GPUs; on CPUs they are slower at short lengths.
    """
    return x.device.type == "cuda"


def needs_contiguous_attention(x: Tensor) -> bool:
    """Whether SDPA needs contiguous inputs to be correct on the device of `x`.

    On MPS, permuted inputs gave wrong numbers (pytorch issue 181133).
    """
    return x.device.type == "mps"


def has_int8_kernel(x: Tensor, num_rows: int) -> bool:
    """Whether `x @ q.T * scale` has a kernel for few rows.

    The kernel has no gradient, and it reads full vectors, beyond the end of rows that are not a
    multiple of 32 long.
    """
    if x.device.type != "cpu" or x.shape[-1] % 32:
        return False
    if num_rows == 0 or num_rows > MAX_INT8_KERNEL_ROWS:
        return False
    is_plain = not torch._C._functorch.is_functorch_wrapped_tensor(x)
    is_differentiated = x.requires_grad and torch.is_grad_enabled()
    return is_plain and not is_differentiated and x.dtype in (torch.float32, torch.bfloat16)


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished its queued work, as before the reading of a clock."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def compile_obstacle(device: torch.device) -> str:
    """Returns why torch.compile cannot be used on a device, or an empty string if it can."""
    if device.type == "mps" or platform.system() == "Darwin":
        return "compiled code gives NaN on some Macs (pytorch 171764)"
    if device.type == "cuda":
        return "" if find_spec("triton") else "triton is not installed"
    compilers = (name for name in ("g++", "c++", "clang++", "cl") if which(name))
    compiler = os.environ.get("CXX") or next(compilers, None)
    return "" if compiler else "there is no C++ compiler (g++ or clang++) on the path"


def supports_graph_capture(device: torch.device) -> bool:
    """Whether a device can record its work as a graph and replay it."""
    return device.type == "cuda"


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Runs the work inside on a stream of its own, as required before the capture of a graph.

    On devices without streams nothing changes.
    """
    if device.type != "cuda":
        yield
        return
    # The ignore: PyTorch does not annotate this constructor.
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call, unused-ignore]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


def graph_pool(device: torch.device) -> Any:
    """Returns a memory pool for graphs that never run at the same time, for `capture_graph`.

    None on devices that do not capture graphs.
    """
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


def capture_graph(
    device: torch.device,
    work: Callable[[], Result],
    pool: Any = None,
) -> Callable[[], Result]:
    """Records work on fixed tensors without doing it; each call of the result does it.

    Args:
        device: where the work runs; without graph support `work` itself is returned.
        work: its result lies in tensors of the graph, which the next replay overwrites.
        pool: memory for all other tensors of the work, by default the graph's own. They are lost
            once another graph of the same pool has run.
    """
    if device.type != "cuda":
        return work
    graph = torch.cuda.CUDAGraph()
    # Other threads may allocate meanwhile: batches are prefetched.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = work()

    def replay() -> Result:
        graph.replay()
        return result

    return replay


def upload(batch: Any, device: torch.device) -> Any:
    """Moves a batch from host to device memory; on GPUs through pinned memory, without waiting."""
    if device.type != "cuda":
        return tree.to_device(batch, device)

    def upload_leaf(leaf: Tensor) -> Tensor:
        return leaf.pin_memory().to(device, non_blocking=True)

    return tree.map(upload_leaf, batch)


def peak_memory(device: torch.device) -> int:
    """Returns the most memory that this process has held so far, in bytes.

    On the device, or resident memory for the CPU; 0 where the platform does not report it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return host.peak_memory()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device, or the machine, has no memory left.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
        (True, False)
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # On CPUs and on MPS it is an ordinary RuntimeError, and cuBLAS has a wording of its own.
    phrases = (
        "out of memory",
        "can't allocate memory",
        "not enough memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "bad_alloc",
    )
    message = str(error)
    return isinstance(error, RuntimeError) and any(phrase in message for phrase in phrases)


def release_memory(device: torch.device) -> None:
    """Returns the unused memory that the device's allocator caches to the system."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def set_num_threads(num_threads: int) -> int:
    """Sets the number of CPU threads and returns the number in force.

    The last bits of sums depend on it.

    Args:
        num_threads: 0 leaves the number as it is.
    """
    if num_threads > 0 and num_threads != torch.get_num_threads():
        torch.set_num_threads(num_threads)
    return torch.get_num_threads()


def device_name(device: torch.device) -> str:
    """Returns the name of the chip."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    return host.processor_name()


def describe() -> dict[str, Any]:
    """Returns the devices, precisions, memory in MiB, threads and versions as plain JSON values."""
    kinds = available()
    return {
        "auto": kinds[0],
        "devices": [_describe_device(kind) for kind in kinds],
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _describe_device(kind: str) -> dict[str, Any]:
    device = torch.device(kind)
    memory_bytes = total_memory(device)
    return {
        "device": kind,
        "name": device_name(device),
        "memory_mib": None if memory_bytes is None else memory_bytes >> 20,
        "precision": str(matmul_dtype(device)).removeprefix("torch."),
    }


def total_memory(device: torch.device) -> int | None:
    """Returns the memory of the device or machine in bytes; None if the platform hides it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return host.total_memory()


def free_memory(device: torch.device) -> int | None:
    """Returns the memory that is unused now, in bytes; None if the platform hides it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return host.free_memory()
