"""TensorBoard as an option: the numbers of metrics.jsonl as scalars in the run folder's `tensorboard`.

Written by the `tensorboard` package (the extra `tensorboard`), whose file format is its own.

Invariant: the curves are those of metrics.jsonl; a resumed run goes on with its own, and what it takes back is hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"


def check() -> None:
    """Asked before a run, not after its first line.

    Raises:
        ValueError: the package is not installed; says how to get it.
    """
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise ValueError(
            'train.tensorboard needs the tensorboard package: pip install "slm_fn[tensorboard]", or set it to false'
        ) from None


@contextmanager
def scalars(run: Path, step: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Takes lines of the diary. What an earlier process wrote of steps after `step` is purged.

    Raises:
        ValueError: the package is not installed.
    """
    check()
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(str(run / FOLDER), purge_step=step + 1) as writer:

        def write(row: dict[str, Any]) -> None:
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                    writer.add_scalar(name, value, row["step"])
            writer.flush()

        yield write
