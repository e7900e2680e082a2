"""TensorBoard as an option: metrics.jsonl as scalars in the run folder's `tensorboard`.

Written by the `tensorboard` package (the extra `tensorboard`), whose file format is its own.

Invariant: the curves are those of metrics.jsonl; a resumed run continues its own, and hides the
steps it repeats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"


def check_installed() -> None:
    """Checks, before a run rather than at its first line, that the package is there.

    Raises:
        ValueError: the package is not installed; the message says how to get it.
    """
    if find_spec("tensorboard") is None:
        raise ValueError(
            "train.tensorboard needs the tensorboard package: "
            'pip install "slm_fn[tensorboard]", or set it to false'
        )


@contextmanager
def open_writer(run: Path, step: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields a function that takes lines of metrics.jsonl.

    Args:
        run: the run folder.
        step: the step the run begins at; what an earlier process wrote of later steps is purged.

    Raises:
        ValueError: the package is not installed.
    """
    check_installed()
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(str(run / FOLDER), purge_step=step + 1) as writer:

        def write(row: dict[str, Any]) -> None:
            for name, value in row.items():
                if name != "step" and _is_finite_number(value):
                    writer.add_scalar(name, value, row["step"])
            writer.flush()

        yield write


def _is_finite_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
