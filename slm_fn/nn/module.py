"""Any torch nn.Module as `(params, apply)` through functional_call, for the same training step.

Invariant: the module is read once and never changed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from slm_fn.core.types import ModelApply, Params


def from_module(module: nn.Module) -> tuple[Params, ModelApply]:
    """Returns a module's parameters as a nested dict, and `apply(params, tokens)`.

    Buffers are copied and constant; the train or eval mode of the module stays as it is. In train
    mode, dropout draws from torch's global generator.

    Args:
        module: called with the tokens alone.

    Returns:
        The parameters, and `apply`, which returns `(output of the module, None)`.

    Example:
        >>> params, apply = from_module(nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8)))
        >>> apply(params, torch.zeros(1, 3, dtype=torch.long))[0].shape
        torch.Size([1, 3, 8])
    """
    buffers = {name: value.detach().clone() for name, value in module.named_buffers()}
    flat_params = {name: value.detach().clone() for name, value in module.named_parameters()}

    def apply(params: Params, tokens: Tensor, past: Any = None, /) -> tuple[Any, None]:
        # functional_call needs flat names with dots; it does not accept nested dicts.
        tensors = {name: _look_up(params, name) for name in flat_params}
        if module.training:
            # In train mode a layer may write to its buffers (running means), so it gets copies.
            tensors |= {name: value.clone() for name, value in buffers.items()}
        else:
            tensors |= buffers
        return torch.func.functional_call(module, tensors, (tokens,)), None

    return _nest(flat_params), apply


def _nest(flat_params: dict[str, Tensor]) -> Params:
    """From `{"a.b": leaf}` to `{"a": {"b": leaf}}`."""
    params: Params = {}
    for name, value in flat_params.items():
        *parents, leaf_name = name.split(".")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf_name] = value
    return params


def _look_up(params: Params, name: str) -> Tensor:
    """The leaf named `a.b` of a nested dict."""
    *parents, leaf_name = name.split(".")
    for parent in parents:
        params = params[parent]
    leaf: Tensor = params[leaf_name]
    return leaf
