"""The processes that torchrun started: join them, agree on decisions, report a lost one.

Invariant: every decision about what happens next (stop, which checkpoint to resume) is the same on
every process.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from slm_fn.core import device as devices

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""How long a process waits before it reports others lost, which may be saving or sampling."""


class LostProcess(ConnectionError):
    """Raised when another process of the job has died or does not answer."""


class DistributedContext(NamedTuple):
    """This process among those of its job, and its device; a single process has no mesh."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    mesh: DeviceMesh | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that logs, displays and writes files."""
        return self.rank == 0

    def on_first(self, note: Callable[[str], None]) -> Callable[[str], None]:
        """Returns `note` on the first process, and a function that does nothing on the others."""
        return note if self.is_first else _ignore

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds on any process; returns the same answer on all of them."""
        return flag if self.mesh is None else self.sum(float(flag))[0] > 0

    def sum(self, *numbers: float) -> list[float]:
        """Returns each number summed over the processes, in float64; the same on all of them."""
        if self.mesh is None:
            return [float(number) for number in numbers]
        totals = torch.tensor(numbers, dtype=torch.float64)
        torch.distributed.all_reduce(totals)
        return totals.tolist()

    def check_same(self, number: int, what: str) -> None:
        """Checks that all processes hold the same number.

        Also a barrier: no process passes before all arrive.

        Args:
            number: what must agree.
            what: what the number counts, for the error message.

        Raises:
            ValueError: the processes hold different numbers.
        """
        value = float(number)
        if self.sum(value, value**2) != [value * self.world_size, value**2 * self.world_size]:
            raise ValueError(
                f"the processes found different {what}; --out must be a folder that all of them see"
            )


SINGLE_PROCESS = DistributedContext(torch.device("cpu"))
"""The default context: one process, on the CPU."""


@contextmanager
def process_group(device: str) -> Iterator[DistributedContext]:
    """Joins the process group of torchrun's environment; without torchrun, a single process.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`: what `--device` accepts.

    Raises:
        ValueError: no such device, more processes than devices, or a device that serves one process
            only.
        LostProcess: another process died or did not answer.
    """
    resolved = devices.resolve(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield DistributedContext(resolved)
        return
    dist = _join(resolved)
    try:
        yield dist
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        # torchrun is about to terminate this process: the message must come out first. The process
        # group is not destroyed here, since that may wait for the lost processes for ever.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise LostProcess(_lost_message(dist, error)) from error
    except BaseException:
        torch.distributed.destroy_process_group()
        raise
    torch.distributed.destroy_process_group()


def _join(device: torch.device) -> DistributedContext:
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    own_device, backend = devices.assign_device(device, local_rank)
    store, rank, world_size = next(rendezvous("env://", timeout=COLLECTIVE_TIMEOUT))
    # torchrun keeps one store through all restarts, which still holds the addresses of the
    # processes that died.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    torch.distributed.init_process_group(
        backend,
        store=PrefixStore(f"attempt-{attempt}", store),
        rank=rank,
        world_size=world_size,
        timeout=COLLECTIVE_TIMEOUT,
    )
    mesh = init_device_mesh(own_device.type, (world_size,), mesh_dim_names=("data",))
    return DistributedContext(own_device, rank, world_size, mesh)


def _lost_message(dist: DistributedContext, error: RuntimeError) -> str:
    first_line = str(error).splitlines()[0]
    cause = re.sub(r"^\[\S*\] ", "", first_line).partition(". ")[0]
    return (
        f"process {dist.rank} of {dist.world_size} lost another one ({cause}). "
        "The last checkpoint is valid: the same command resumes from it, "
        "and torchrun --max-restarts N does so automatically"
    )


def _is_lost(error: RuntimeError) -> bool:
    """Whether an error comes from communication; gloo's errors have no class of their own."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()


def _ignore(text: str) -> None:
    return None
