"""Weights laid out for inference: layer by layer, q-k-v and gate-up as one product each, packed for the CPU's kernels.

Invariant: what `apply` makes of them is what it makes of the plain ones, within rounding; nothing of it is ever saved.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from slm_fn.core import device, tree
from slm_fn.core.types import Params, Path
from slm_fn.lift import quant
from slm_fn.lift.quant import Quant, Quant4
from slm_fn.nn import ops

JOINED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
"""Products of one input: as one they are a call less each, and long enough to run at the memory's speed."""


class Packed(NamedTuple):
    """A matrix in the blocks that oneDNN's product reads; the plain one would be copied into them at every call."""

    weight: Tensor  # opaque, (O, I)


class Packed4(NamedTuple):
    """INT4 in the order that its kernel reads."""

    q: Tensor  # opaque, uint8
    scale_and_zero: Tensor  # (I / G, O, 2)
    group: int


def lay_out(params: Params) -> Params:
    """The tree that `gpt.apply` runs fastest where its weights are. It replaces the plain one: nothing else reads it.

    A tied head that is packed is one matrix more in memory: rows are looked up in the plain one.

    Example:
        >>> from slm_fn.nn import gpt
        >>> config = gpt.ModelConfig(vocab_size=64, dim=32, num_layers=2, ffn_dim=64)
        >>> found = lay_out(gpt.init(config, key=0))
        >>> len(found["blocks"]), list(found["blocks"][0]["attn"])
        (2, ['o', 'qkv'])
    """
    dtype = params["norm"].dtype
    joined = _joined(params["blocks"])

    def pack(path: Path, leaf: Any) -> Any:
        # A router multiplies in float32 whatever the model is in.
        return leaf if path.endswith("router") else _packed(leaf, dtype)

    layers = tuple(tree.update_in(layer, pack) for layer in tree.unstack(joined))
    rest = {name: leaf for name, leaf in params.items() if name != "blocks"}
    head = params["head"] if "head" in params else params["embed"]
    packed = _packed(head, dtype)
    return {**rest, "blocks": layers, **({"head": packed} if packed is not head else {})}


def _joined(params: dict[str, Any]) -> dict[str, Any]:
    out = {name: _joined(leaf) if isinstance(leaf, dict) else leaf for name, leaf in params.items()}
    for name, parts in JOINED.items():
        if not all(part in out for part in parts):
            continue
        for ending in ("", "_bias"):
            leaves = [out.pop(f"{part}{ending}") for part in parts if f"{part}{ending}" in out]
            if leaves:
                out[f"{name}{ending}"] = tree.map(lambda *xs: torch.cat(xs, 1), *leaves)
    return out


def _packed(leaf: Any, dtype: torch.dtype) -> Any:
    """A leaf as the kernels want it; vectors and what has no kernel stay."""
    if isinstance(leaf, Quant4):
        num_outputs, num_groups = leaf.scale.shape
        group = leaf.q.shape[-1] * 2 // num_groups
        if not device.has_int4_kernel(leaf.q.device, dtype, num_outputs, group):
            return leaf
        q = torch.ops.aten._convert_weight_to_int4pack_for_cpu(quant.numbers(leaf).int(), 1)
        return Packed4(q, torch.stack([leaf.scale.T, leaf.zero.T], -1).contiguous(), group)
    if isinstance(leaf, Tensor) and leaf.ndim == 2 and device.has_packed_products(leaf.device, leaf.dtype):
        return Packed(torch.ops.mkldnn._reorder_linear_weight(leaf.contiguous(), 1))
    return tree.map(Tensor.contiguous, leaf)


def rows_are_alike(params: Params) -> bool:
    """Whether each product of a decoding step treats a row the same among any number of them up to `device.FEW_ROWS`.

    The kernels of quantised matrices do. Others take another way for one row, and for rows that fill no block.
    """
    blocks, head = params.get("blocks"), params["head"] if "head" in params else params.get("embed")
    if blocks is None:
        return False
    stacked = isinstance(blocks, dict)
    leaves = [leaf for layer in ([blocks] if stacked else blocks) for leaf in tree.flat(layer).values()]

    def alike(leaf: Any) -> bool:
        if isinstance(leaf, Quant):
            return leaf.q.device.type == "cpu" and leaf.q.shape[-1] % 32 == 0  # as the kernel wants them
        return isinstance(leaf, Packed4) or (isinstance(leaf, Tensor) and leaf.ndim <= 1 + stacked)  # or a vector

    return isinstance(head, Quant | Packed4) and all(map(alike, [*leaves, head]))


@ops.linear.register
def _product(weight: Packed, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
    return torch.ops.mkldnn._linear_pointwise(x, weight.weight, None, "none", [], "")


@ops.linear.register
def _product4(weight: Packed4, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
    rows = x.reshape(-1, x.shape[-1])
    y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, weight.q, weight.group, weight.scale_and_zero)
    return y.unflatten(0, x.shape[:-1])


for _kind in (Packed, Packed4):
    ops.linear.dispatch(_kind)  # looked up before any trace
