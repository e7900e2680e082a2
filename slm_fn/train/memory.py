"""Out of memory: the step is tried again with twice as many micro-batches.

Invariant: the gradient stays that of the full batch; only how many rows are in memory at once
changes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, TypeVar

from slm_fn.core import device as devices
from slm_fn.core import tree
from slm_fn.train.config import TrainConfig

R = TypeVar("R")


class OutOfMemory(Exception):
    """Raised when not even one row fits; the message names settings that need less memory."""


class MicroBatches:
    """Into how many micro-batches a step splits its batch.

    As many as the config says, and more once memory has run out. It belongs to one training loop,
    which hands it to the step and prints its messages.

    Example:
        >>> micro_batches = MicroBatches(2)
        >>> micro_batches.double(num_rows=8)
        >>> micro_batches.count, micro_batches.take_messages()
        (4, ['out of memory with 4 rows at a time: 2 from here on'])
    """

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self._messages: list[str] = []

    def double(self, num_rows: int) -> None:
        """Splits into twice as many from now on, but not into more than there are rows."""
        rows_before = -(-num_rows // self.count)
        self.count = min(2 * self.count, num_rows)
        rows_now = -(-num_rows // self.count)
        self._messages.append(
            f"out of memory with {rows_before} rows at a time: {rows_now} from here on"
        )

    def take_messages(self) -> list[str]:
        """Returns a line for each change since the last call."""
        messages = self._messages
        self._messages = []
        return messages


def retry_on_out_of_memory(
    make: Callable[[int], Callable[..., R]], micro_batches: MicroBatches, advice: str = ""
) -> Callable[..., R]:
    """Lifts `(int -> f) -> f`: f(params or state, batch) survives running out of memory.

    `make(n)` takes the rows in n micro-batches. When the device has no memory left the call is made
    again with twice as many, and the number stays there. A failed call leaves its arguments
    untouched, because f is a function.

    It lifts a `ValueAndGrad` as well as a `Step`; among several processes only the former, inside
    the collectives: each process then finds its own number.

    Args:
        make: returns the function that takes the rows in so many micro-batches.
        micro_batches: the number to start with; changed when memory runs out.
        advice: settings that need less memory, for the error.

    Raises:
        OutOfMemory: one row at a time does not fit either.

    Example:
        >>> import torch
        >>> def make(num_micro_batches):
        ...     def sums(params, batch):
        ...         if len(batch) // num_micro_batches > 2:
        ...             raise MemoryError
        ...         return num_micro_batches
        ...     return sums
        >>> micro_batches = MicroBatches()
        >>> retry_on_out_of_memory(make, micro_batches)(None, torch.zeros(8))
        4
        >>> micro_batches.take_messages()[-1]
        'out of memory with 4 rows at a time: 2 from here on'
    """

    def with_retries(held: Any, batch: Any, *args: Any) -> R:
        first_leaf = tree.leaves(batch)[0]
        num_rows = first_leaf.shape[0]
        while True:
            try:
                return make(micro_batches.count)(held, batch, *args)
            except (RuntimeError, MemoryError) as error:
                if not devices.is_out_of_memory(error):
                    raise
                if micro_batches.count >= num_rows:
                    raise OutOfMemory(_message(batch, advice)) from error
            # After the except clause: the error held every frame of the call, and with them its
            # tensors.
            micro_batches.double(num_rows)
            gc.collect()
            devices.release_memory(first_leaf.device)

    return with_retries


def _message(batch: Any, advice: str) -> str:
    row_shape = " x ".join(str(n) for n in tree.leaves(batch)[0].shape[1:])
    advice = advice or "take a smaller model or a shorter context"
    return f"out of memory with one row ({row_shape}) at a time; {advice}"


def advise(settings: TrainConfig, context: int, section: str = "pretrain") -> str:
    """Returns a line that names the settings which would need less memory than these.

    Args:
        settings: how the run trains now.
        context: the model's context in tokens.
        section: the section of the config that holds `settings`.

    Example:
        >>> advise(TrainConfig(precision="bfloat16", remat=True), context=512)
        'lower model.context (512) or model.num_layers; `slm plan CONFIG` says what would fit'
    """
    switches = []
    if not settings.remat:
        switches.append(f"--set {section}.train.remat=true")
    if settings.precision in ("float32", "tf32"):
        switches.append(f"--set {section}.train.precision=bfloat16")
    prefix = f"{' '.join(switches)}, or " if switches else ""
    return (
        f"{prefix}lower model.context ({context}) or model.num_layers; "
        "`slm plan CONFIG` says what would fit"
    )
