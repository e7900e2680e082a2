"""Timing of training steps: every trainer gets the same tokens and the same warm-up.

Invariant: the clock stops once the device has finished all its work, and the device is never
synchronized between two timed steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from slm_fn.core import device as devices

Batch = TypeVar("Batch")


class StepWorkload(NamedTuple):
    """What every trainer is measured on.

    Attributes:
        vocab_size: number of different token ids.
        batch_size: rows of a step.
        context: target tokens of a row.
        num_steps: timed steps.
        device: name of the device that computes.
        num_warmup_steps: untimed steps before, at least 1.
    """

    vocab_size: int
    batch_size: int
    context: int
    num_steps: int
    device: str
    num_warmup_steps: int = 3


class StepTiming(NamedTuple):
    """The result of one round.

    Attributes:
        tok_per_s: trained target tokens per second.
        peak_memory_mib: of the process on a CPU, else what the device held.
        compile_s: how much longer the first step took than a timed one.
        data_stall_share: share of the time that was spent waiting for batches.
        first_loss: loss of the first warm-up step, in nats.
        last_loss: loss of the last timed step; it is lower if the trainer learns.
        matmul_flop_per_s: this machine's rate of matrix products in the same round; 0 if not
            measured.
        engine: what ran the step.
    """

    tok_per_s: float
    peak_memory_mib: float
    compile_s: float
    data_stall_share: float
    first_loss: float
    last_loss: float
    matmul_flop_per_s: float = 0.0
    engine: str = ""


def random_tokens(workload: StepWorkload, position: int) -> np.ndarray:
    """Returns random token ids of shape (B, T+1), the same for every call with one position.

    Low ids are more frequent than high ones, which is what a model can learn from them.

    Example:
        >>> random_tokens(StepWorkload(100, 4, 50, 1, "cpu"), 0).shape
        (4, 51)
    """
    size = (workload.batch_size, workload.context + 1)
    uniform = np.random.default_rng(position).random(size)
    return (uniform**3 * workload.vocab_size).astype(np.int64)


def time_steps(
    step: Callable[[Batch], torch.Tensor], batches: Iterator[Batch], workload: StepWorkload
) -> StepTiming:
    """Takes the warm-up steps, then times the others together.

    Args:
        step: takes a batch and returns its loss, a scalar that is read only at the end.
        batches: at least as many as there are steps.
        workload: the number of steps and the size of a batch.
    """
    device = torch.device(workload.device)
    started = time.perf_counter()
    first_loss = step(next(batches))
    devices.synchronize(device)
    first_step_seconds = time.perf_counter() - started
    for _ in range(workload.num_warmup_steps - 1):
        step(next(batches))
    devices.synchronize(device)

    last_loss = first_loss
    stall_seconds = 0.0
    started = time.perf_counter()
    for _ in range(workload.num_steps):
        requested = time.perf_counter()
        batch = next(batches)
        stall_seconds += time.perf_counter() - requested
        last_loss = step(batch)
    devices.synchronize(device)
    seconds = time.perf_counter() - started

    num_tokens = workload.num_steps * workload.batch_size * workload.context
    return StepTiming(
        tok_per_s=num_tokens / seconds,
        peak_memory_mib=devices.peak_memory(device) / (1 << 20),
        compile_s=max(0.0, first_step_seconds - seconds / workload.num_steps),
        data_stall_share=stall_seconds / seconds,
        first_loss=float(first_loss),
        last_loss=float(last_loss),
    )
