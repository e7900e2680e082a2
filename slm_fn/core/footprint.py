"""How much memory a function would hold at most: it is run on tensors that have shapes but no numbers.

Invariant: nothing is computed and next to nothing allocated, so a model of any size is measured on any machine.
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
    """Bytes: of the arguments, of the result, and the most that tensors held at any moment, both included."""

    given: int
    result: int
    peak: int


def size(value: Any) -> int:
    """Bytes of a tree's tensors, each storage once."""
    storages = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in _tensors(value)}
    return sum(storages.values())


def footprint(f: Callable[..., Any], make: Callable[[], tuple[Any, ...]]) -> Footprint:
    """Run `f(*make())` without numbers, and say what it held.

    What a kernel takes for itself while it runs is not seen, nor what an allocator loses between blocks.

    Args:
        make: gives the arguments; it too is run without numbers, so they may be larger than this machine.

    Raises:
        RuntimeError: the function reads a number from a tensor, which is not there.

    Example:
        >>> footprint(lambda x: (x * 2).sum(), lambda: (torch.zeros(1000),))
        Footprint(given=4000, result=4, peak=8004)
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        arguments = make()
        with _Watch() as watch:
            for x in _tensors(arguments):
                watch.see(x)
            result = f(*arguments)
            return Footprint(size(arguments), size(result), watch.peak)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree.leaves(value) if isinstance(leaf, Tensor)]


class _Watch(TorchDispatchMode):
    """Counts the bytes of every storage from the operation that made it until nobody holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.peak = 0, 0
        self.known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def see(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key, num_bytes = storage._cdata, storage.nbytes()
        if key in self.known:
            return

        def gone(_: Any) -> None:
            self.held -= num_bytes
            self.known.pop(key, None)

        self.known[key] = weakref.ref(storage, gone)
        self.held += num_bytes
        self.peak = max(self.peak, self.held)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in _tensors(out):
            self.see(x)
        return out
