"""What this machine can do at most: the rates at which it multiplies matrices and reads memory.

Invariant: a limit is measured, in the precision and by the product that training uses; it is not read from a table.
"""

from __future__ import annotations

import statistics
import time

import torch
import torch.nn.functional as F

from slm_fn.core import device as devices

USUAL_SHARE = 0.5
"""Of the rate at which a machine multiplies matrices, what a training step reaches: a guess before the first one."""
SIDE, SIDE_ACCELERATED = 2048, 8192
"""Sides of the square matrices: large enough to be at the limit, small enough for some hundredths of a second."""


def matmul_side(device: torch.device) -> int:
    """The side of the matrices that `matmul_rate` multiplies on a device."""
    return SIDE if device.type == "cpu" else SIDE_ACCELERATED


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int = 0, repeat: int = 5) -> float:
    """Operations per second of a square matrix product, `x @ w.T` as in a linear layer: the median of some.

    Args:
        side: of the matrices; 0 takes `matmul_side`.

    Example:
        >>> matmul_rate(torch.device("cpu"), torch.float32, side=64) > 0
        True
    """
    side = side or matmul_side(device)
    x = torch.full((side, side), 0.5, dtype=dtype, device=device)
    w = torch.full((side, side), 0.5, dtype=dtype, device=device)
    products = 1 if device.type == "cpu" else 10  # on an accelerator one is over too soon to be timed
    rates = []
    for turn in range(repeat + 2):
        devices.synchronize(device)
        begun = time.perf_counter()
        for _ in range(products):
            F.linear(x, w)
        devices.synchronize(device)
        if turn >= 2:  # the first ones choose a kernel and fill caches
            rates.append(2 * side**3 * products / (time.perf_counter() - begun))
    return statistics.median(rates)


def read_rate(device: torch.device, size: int = 1 << 28, repeat: int = 7) -> float:
    """Bytes per second at which numbers are read that no cache holds: the median of some sums over `size` bytes.

    Example:
        >>> read_rate(torch.device("cpu"), size=1 << 20) > 0
        True
    """
    x = torch.ones(size // 4, device=device)
    rates = []
    for _ in range(repeat + 1):
        devices.synchronize(device)
        begun = time.perf_counter()
        x.sum()
        devices.synchronize(device)
        rates.append(size / (time.perf_counter() - begun))
    return statistics.median(rates[1:])  # the first one brings in the pages
