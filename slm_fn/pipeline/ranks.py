"""The processes that torchrun started: join them, agree, and say so when one is lost.

Invariant: whatever decides what happens next (stop, where to go on from) is the same on every process.
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
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from slm_fn.core import device as devices

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others, which may be saving or sampling, before it calls them lost."""


class LostProcess(ConnectionError):
    """Another process of this job is gone; its message says how to go on."""


class Ranks(NamedTuple):
    """This process among those of the job, and the device it computes on; alone it has no mesh."""

    device: torch.device
    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that logs, shows and writes."""
        return self.rank == 0

    def telling(self, note: Callable[[str], None]) -> Callable[[str], None]:
        """What tells a person: on the first process alone."""
        return note if self.first else lambda text: None

    def any(self, flag: bool) -> bool:
        """Whether it holds on any process: the same answer on all."""
        return self.sum(float(flag))[0] > 0

    def sum(self, *numbers: float) -> list[float]:
        """Each number summed over the processes: the same on all."""
        told = torch.tensor(numbers, dtype=torch.float64)
        if self.mesh is not None:
            dist.all_reduce(told)
        return told.tolist()

    def check_same(self, number: int, what: str) -> None:
        """Also a barrier: behind it all processes have come here.

        Raises:
            ValueError: the processes have different numbers.
        """
        if self.sum(float(number), float(number) ** 2) != [float(number) * self.size, float(number) ** 2 * self.size]:
            raise ValueError(f"the processes found different {what}; --out must be a folder that all of them see")


ALONE = Ranks(torch.device("cpu"))
"""The one process there is, where nobody says otherwise."""


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """This process among those of its job, from torchrun's environment; alone without it.

    Raises:
        ValueError: no such device, more processes than devices, or a device that serves one process only.
        LostProcess: another process died or did not answer.
    """
    place, size = devices.resolve(device), int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks(place)
        return
    place, carrier = devices.of_process(place, int(os.environ.get("LOCAL_RANK", "0")))
    store, rank, size = next(dist.rendezvous("env://", timeout=PATIENCE))
    # torchrun keeps one store through all restarts, in which the dead left their addresses.
    store = dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(carrier, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield Ranks(place, rank, size, init_device_mesh(place.type, (size,), mesh_dim_names=("data",)))
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        # torchrun is about to end this process; what it has to say goes first. The group is left as it is: to take
        # leave of those who are gone may take for ever.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        cause = re.sub(r"^\[\S*\] ", "", str(error).splitlines()[0]).partition(". ")[0]
        raise LostProcess(
            f"process {rank} of {size} lost another one ({cause}). The last checkpoint stands: the same "
            "command goes on from it, and torchrun --max-restarts N does so by itself"
        ) from error
    except BaseException:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _is_lost(error: RuntimeError) -> bool:
    """Whether an error comes from between the processes; gloo's have no class of their own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()
