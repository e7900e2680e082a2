"""How much memory a function would hold, measured by running it on tensors without data.

Invariant: nothing is computed and next to nothing is allocated, so a model of any size is
measured on any machine.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from slm_fn.core import tree


class Footprint(NamedTuple):
    """Memory of a call in bytes; the peak includes the arguments and the result."""

    argument_bytes: int
    result_bytes: int
    peak_bytes: int


def num_bytes(value: Any) -> int:
    """Returns the bytes of a tree's tensors; a storage that several of them share counts once."""
    storages = [tensor.untyped_storage() for tensor in _tensors(value)]
    bytes_of_storage = {storage._cdata: storage.nbytes() for storage in storages}
    return sum(bytes_of_storage.values())


def measure_footprint(
    function: Callable[..., Any], make_arguments: Callable[[], tuple[Any, ...]]
) -> Footprint:
    """Runs `function(*make_arguments())` without data, and returns the memory it would hold.

    The workspace that a kernel allocates while it runs is not counted, nor what an allocator loses
    between blocks.

    Args:
        function: the function to measure.
        make_arguments: returns its arguments; it too is run without data, so they may be larger
            than this machine.

    Raises:
        RuntimeError: the function reads a number from a tensor, which has none.

    Example:
        >>> measure_footprint(lambda x: (x * 2).sum(), lambda: (torch.zeros(1000),))
        Footprint(argument_bytes=4000, result_bytes=4, peak_bytes=8004)
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        arguments = make_arguments()
        with _StorageTracker() as tracker:
            for tensor in _tensors(arguments):
                tracker.track(tensor)
            result = function(*arguments)
            return Footprint(num_bytes(arguments), num_bytes(result), tracker.peak_bytes)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree.leaves(value) if isinstance(leaf, Tensor)]


# The ignores: PyTorch does not annotate the methods of TorchDispatchMode.
class _StorageTracker(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Counts the bytes of every storage from the operation that makes it until it is freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.live_bytes = 0
        self.peak_bytes = 0
        self._live: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def track(self, tensor: Tensor) -> None:
        """Counts the storage of a tensor, unless it is counted already."""
        storage = tensor.untyped_storage()
        storage_id = storage._cdata
        size = storage.nbytes()
        if storage_id in self._live:
            return

        def on_free(_: Any) -> None:
            self.live_bytes -= size
            self._live.pop(storage_id, None)

        self._live[storage_id] = weakref.ref(storage, on_free)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self.track(tensor)
        return result
