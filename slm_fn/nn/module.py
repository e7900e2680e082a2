"""Any torch nn.Module as `(params, apply)` through functional_call, trained by the very same step.

Invariant: the module handed in is read once and never changed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from slm_fn.core.types import Apply, Params


def from_module(module: nn.Module) -> tuple[Params, Apply]:
    """The module's parameters as a nested dict, and `apply(params, tokens) -> (output, None)`.

    Buffers are copied and held fixed, and the module's train/eval mode is kept. Put a module with dropout in
    eval mode, or accept its draws from the global generator.

    Example:
        >>> params, apply = from_module(nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8)))
        >>> apply(params, torch.zeros(1, 3, dtype=torch.long))[0].shape
        torch.Size([1, 3, 8])
    """
    fixed = {name: value.detach().clone() for name, value in module.named_buffers()}

    def apply(params: Params, tokens: Tensor, past: None = None) -> tuple[Any, None]:
        # In train mode a layer may write to its buffers (running means): it gets a copy to write to.
        held = {name: value.clone() for name, value in fixed.items()} if module.training else fixed
        return torch.func.functional_call(module, {**_flatten(params), **held}, (tokens,)), None

    return _nest({name: value.detach().clone() for name, value in module.named_parameters()}), apply


def _nest(flat: dict[str, Tensor]) -> Params:
    out: Params = {}
    for name, value in flat.items():
        *folders, leaf = name.split(".")
        place = out
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = value
    return out


def _flatten(params: Params, prefix: str = "") -> dict[str, Tensor]:
    # functional_call wants flat "a.b" keys; it fails on nested dicts.
    out: dict[str, Tensor] = {}
    for key, value in params.items():
        out |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out
