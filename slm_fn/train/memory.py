"""Out of memory: the rows of a batch in twice as many parts, and the same step once more.

Invariant: the gradient stays that of the whole batch; only how many of its rows are held at once changes.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from slm_fn.core import device as devices
from slm_fn.core import tree
from slm_fn.train.loop import TrainConfig

F = TypeVar("F", bound=Callable[..., Any])


class OutOfMemory(Exception):
    """Not even one row fits; its message says which settings need less."""


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def halving(
    make: Callable[[int], F], parts: int = 1, advice: str = "", note: Callable[[str], None] = _say
) -> Callable[..., Any]:
    """Lift `(int -> f) -> f`: a function of (what it reads, a batch) that survives running out of memory.

    `make(n)` takes the rows in n parts. When the device has no memory left the call is made again with twice as many,
    and so it stays. Arguments are untouched by a call that fails, because f is a function.

    It lifts a `ValueAndGrad` as well as a `Step`; among several processes only the former, beneath the collectives:
    each process then finds its own number.

    Args:
        advice: settings that need less memory, for the error.
        note: told a line when the number changes.

    Raises:
        OutOfMemory: one row at a time does not fit either.

    Example:
        >>> import torch
        >>> def make(parts):
        ...     def sums(params, batch):
        ...         if len(batch) // parts > 2:
        ...             raise MemoryError
        ...         return parts
        ...     return sums
        >>> halving(make, note=print)(None, torch.zeros(8))
        out of memory with 8 rows at a time: 4 from here on
        out of memory with 4 rows at a time: 2 from here on
        4
    """
    take = make(parts)

    def run(held: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal parts, take
        rows = tree.leaves(batch)[0].shape[0]
        while True:
            try:
                return take(held, batch, *args, **kwargs)
            except (RuntimeError, MemoryError) as error:
                if not devices.is_out_of_memory(error):
                    raise
                if parts >= rows:
                    raise OutOfMemory(_advise(batch, advice)) from error
            # Beyond the except clause: the error held every frame of the call, and with them its tensors.
            before, parts = parts, min(2 * parts, rows)
            note(f"out of memory with {-(-rows // before)} rows at a time: {-(-rows // parts)} from here on")
            take = make(parts)
            gc.collect()
            devices.release_memory(tree.leaves(batch)[0].device)

    return run


def _advise(batch: Any, advice: str) -> str:
    shape = " x ".join(str(n) for n in tree.leaves(batch)[0].shape[1:])
    return f"out of memory with one row ({shape}) at a time; {advice or 'take a smaller model or a shorter context'}"


def advise(settings: TrainConfig, context: int, section: str = "pretrain") -> str:
    """Which settings would need less memory than these.

    Example:
        >>> advise(TrainConfig(precision="bfloat16", remat=True), context=512)
        'lower model.context (512) or model.num_layers; `slm plan CONFIG` says what would fit'
    """
    switches = [
        *([] if settings.remat else [f"{section}.train.remat=true"]),
        *([f"{section}.train.precision=bfloat16"] if settings.precision in ("float32", "tf32") else []),
    ]
    first = f"--set {' --set '.join(switches)}, or " if switches else ""
    return f"{first}lower model.context ({context}) or model.num_layers; `slm plan CONFIG` says what would fit"
