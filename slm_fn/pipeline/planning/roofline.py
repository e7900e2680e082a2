"""This machine's limits: the rates at which it multiplies matrices and reads memory.

Invariant: a limit is measured, in the precision and by the product that training uses; none is
read from a table.
"""

from __future__ import annotations

import statistics
import time

import torch
import torch.nn.functional as F

from slm_fn.core import device as devices

USUAL_MATMUL_SHARE = 0.5
"""Share of the matmul rate that a training step reaches: an estimate before the first step."""
CPU_SIDE = 2048
ACCELERATOR_SIDE = 8192
"""Sides of the square matrices: large enough for the limit, small enough for a few hundredths of a
second."""
NUM_WARMUPS = 2
"""Untimed repetitions: the first ones choose a kernel and fill caches."""


def matmul_side(device: torch.device) -> int:
    """The side of the matrices that `matmul_rate` multiplies on a device."""
    return CPU_SIDE if device.type == "cpu" else ACCELERATOR_SIDE


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int = 0, repeat: int = 5) -> float:
    """Operations per second of `x @ w.T` with square matrices: the median of `repeat` timings.

    Args:
        side: of the matrices; 0 takes `matmul_side`.

    Example:
        >>> matmul_rate(torch.device("cpu"), torch.float32, side=64) > 0
        True
    """
    side = side or matmul_side(device)
    x = torch.full((side, side), 0.5, dtype=dtype, device=device)
    w = torch.full((side, side), 0.5, dtype=dtype, device=device)
    # On an accelerator a single product is too short to time.
    num_products = 1 if device.type == "cpu" else 10
    num_operations = 2 * side**3 * num_products
    rates = []
    for repetition in range(repeat + NUM_WARMUPS):
        devices.synchronize(device)
        started = time.perf_counter()
        for _ in range(num_products):
            F.linear(x, w)
        devices.synchronize(device)
        if repetition >= NUM_WARMUPS:
            rates.append(num_operations / (time.perf_counter() - started))
    return statistics.median(rates)


def read_rate(device: torch.device, size: int = 1 << 28, repeat: int = 7) -> float:
    """Bytes per second of reading memory beyond any cache: the median over sums of `size` bytes.

    Example:
        >>> read_rate(torch.device("cpu"), size=1 << 20) > 0
        True
    """
    x = torch.ones(size // 4, device=device)
    rates = []
    for _ in range(repeat + 1):
        devices.synchronize(device)
        started = time.perf_counter()
        x.sum()
        devices.synchronize(device)
        rates.append(size / (time.perf_counter() - started))
    return statistics.median(rates[1:])  # the first sum maps the pages
