"""The pace of a training step, whoever's it is: the same tokens, the same warm-up, one clock.

Invariant: the clock stops when the device has done all it was told, and never in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from slm_fn.core import device as devices


class Work(NamedTuple):
    """What every contestant is given: rows of `context` targets over a vocabulary, and how many steps are timed."""

    vocab_size: int
    batch_size: int
    context: int
    steps: int
    device: str
    warmup: int = 3


class Pace(NamedTuple):
    """How a contestant did. The first loss and the last say whether it learnt at all."""

    tok_per_s: float
    peak_memory_mib: float
    compile_s: float
    stall_share: float
    first_loss: float
    loss: float
    matmul_flop_per_s: float = 0.0
    engine: str = ""


def tokens_at(work: Work, position: int) -> np.ndarray:
    """Random ids (B, T+1), low ones more often than high ones: that much there is to learn."""
    drawn = np.random.default_rng(position).random((work.batch_size, work.context + 1))
    return (drawn**3 * work.vocab_size).astype(np.int64)


def pace(step: Callable[[Any], torch.Tensor], batches: Iterator[Any], work: Work) -> Pace:
    """Take `warmup` steps, then time `steps` of them. The first one's excess over those is what compiling took.

    Args:
        step: takes a batch and gives its loss, which stays on the device until the end.
    """
    place = torch.device(work.device)
    begun = time.perf_counter()
    first = step(next(batches))
    devices.synchronize(place)
    opening = time.perf_counter() - begun
    for _ in range(work.warmup - 1):
        step(next(batches))
    devices.synchronize(place)
    begun, waited, last = time.perf_counter(), 0.0, first
    for _ in range(work.steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        last = step(batch)
    devices.synchronize(place)
    seconds = time.perf_counter() - begun
    return Pace(
        tok_per_s=work.steps * work.batch_size * work.context / seconds,
        peak_memory_mib=devices.peak_memory(place) / (1 << 20),
        compile_s=max(0.0, opening - seconds / work.steps),
        stall_share=waited / seconds,
        first_loss=float(first),
        loss=float(last),
    )
