"""Engines for a function: eager, or compiled by torch.compile.

Invariant: the function's meaning does not change; only its speed does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch

Engine = Literal["eager", "compile"]


def jit(engine: Engine = "eager") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Lift `f -> f`. Put it on a block of the model rather than on the whole step: one compile serves every layer.

    `compile` needs a C++ compiler on a CPU; it pays on runs longer than a few minutes.

    Raises:
        ValueError: no such engine.

    Example:
        >>> jit("eager")(abs)(-1)
        1
    """
    if engine not in get_args(Engine):
        raise ValueError(f"engine {engine!r} is not one of {', '.join(get_args(Engine))}")
    return (lambda f: f) if engine == "eager" else torch.compile
