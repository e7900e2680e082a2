"""Sharding as data: replicate, fsdp and tensor-parallel placements; value_and_grad over a mesh of processes.

Each process takes its own rows and hands them to the same arrow; parameters rest as DTensors whose placements are a
tree. A rank may have more rows than another, or none: what is averaged is weighted by `aux["weight"]`.

Invariant: gradients and what the loss reports are those of one process on all ranks' rows together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.experimental import implicit_replication

from slm_fn.core import tree
from slm_fn.core.grads import is_count
from slm_fn.core.types import Aux, Params, Path, ValueAndGrad
from slm_fn.nn import gpt
from slm_fn.nn.gpt import ModelConfig

Placements = dict[str, Any]
"""A nested dict like the params; a leaf is a tuple with a placement for each axis of the mesh."""

COLUMNS, ROWS = ("q", "k", "v", "gate", "up"), ("o", "down")
"""Block matrices split where they write (their outputs are heads or hidden units), and where they read."""


def replicate(mesh: DeviceMesh) -> Callable[[ValueAndGrad], ValueAndGrad]:
    """Lift `VG -> VG`: every rank holds all parameters and gets the gradient of all ranks' rows, by all-reduce.

    Leaves are stacked over layers, so they are few and large: each is a bucket. Put it outside of `accumulate`, and
    one reduction serves all parts: `pipe(value_and_grad, accumulate(4), replicate(mesh))(loss)`. Leaves that are
    sharded over another axis of the mesh are reduced shard by shard.
    """
    group = mesh.get_group()

    def lift(vg: ValueAndGrad) -> ValueAndGrad:
        def replicated(params: Params, batch: Any, scale: Tensor | None = None) -> tuple[tuple[Tensor, Aux], Params]:
            found, grads = vg(params, batch, scale)
            found, share = _average(found, group)
            grads = tree.map(lambda g: _times(g, share), grads)
            sums = [dist.all_reduce(_local(g), group=group, async_op=True) for g in tree.leaves(grads)]
            for work in sums:
                work.wait()
            return found, grads

        return replicated

    return lift


def fsdp(mesh: DeviceMesh) -> Callable[[ValueAndGrad], ValueAndGrad]:
    """Lift `VG -> VG`: `scatter . vg . gather`. Parameters come in sharded (`place`), gradients go out the same way.

    So the optimizer's state and its work are sharded too: begin with `place(params, zero(params, mesh), mesh)`. For
    the time of `vg` each rank holds the whole parameters.

    References: arXiv 1910.02054 (ZeRO), 2304.11277 (FSDP).
    """
    group = mesh.get_group()

    def lift(vg: ValueAndGrad) -> ValueAndGrad:
        def sharded(params: Params, batch: Any, scale: Tensor | None = None) -> tuple[tuple[Tensor, Aux], Params]:
            found, grads = vg(tree.map(tree.whole, params), batch, scale)
            found, share = _average(found, group)

            def scatter(g: Tensor, like: DTensor) -> Tensor:
                partial = DTensor.from_local(_times(g, share), like.device_mesh, [Partial()], run_check=False)
                return partial.redistribute(placements=like.placements)

            return found, tree.map(scatter, grads, params)

        return sharded

    return lift


def implicit(vg: ValueAndGrad) -> ValueAndGrad:
    """Lift `VG -> VG` for parameters placed by `tensor_parallel`: the batch and all constants count as replicated.

    The forward pass and the loss are the unchanged ones, with the attention backend `plain` (the fused kernels have no
    rule for shards) and the autograd engine. Value and aux come back as plain tensors, gradients as the params.
    """

    def placed(params: Params, batch: Any, scale: Tensor | None = None) -> tuple[tuple[Tensor, Aux], Params]:
        with implicit_replication():
            found, grads = vg(params, batch, scale)
            grads = tree.map(lambda g, p: g.redistribute(placements=p.placements), grads, params)
            return tree.map(tree.whole, found), grads

    return placed


def _average(found: tuple[Tensor, Aux], group: dist.ProcessGroup) -> tuple[tuple[Tensor, Aux], Tensor]:
    """Value and aux over all ranks, and this rank's share of the weight."""
    value, aux = found
    w = aux["weight"]
    counts = {name: x for name, x in aux.items() if is_count(name)}
    means = {name: _times(x, w) for name, x in aux.items() if name not in counts}
    value, means, counts = _sum((_times(value, w), means, counts), group)
    total = counts["weight"]
    total = torch.where(total > 0, total, 1)
    return (value / total, {**tree.map(lambda x: x / total, means), **counts}), w / total


def _times(x: Tensor, w: Tensor) -> Tensor:
    """`x * w`, and zero where nothing was counted: a mean over no rows may be NaN."""
    return torch.where(w > 0, x * w, 0)


def _sum(found: Any, group: dist.ProcessGroup) -> Any:
    """Every leaf summed over the ranks, one reduction for each dtype."""
    leaves, spec = tree.flatten(found)
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
        here = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
        flat = torch.cat([leaves[i].reshape(-1) for i in here])
        dist.all_reduce(flat, group=group)
        for i, part in zip(here, flat.split([leaves[i].numel() for i in here]), strict=True):
            leaves[i] = part.view(leaves[i].shape)
    return tree.unflatten(leaves, spec)


def _local(leaf: Tensor) -> Tensor:
    return leaf.to_local() if isinstance(leaf, DTensor) else leaf


def zero(params: Params, mesh: DeviceMesh) -> Placements:
    """Placements for `fsdp`: each leaf along its first axis, which for block weights is the layers.

    So a rank holds whole matrices, and Muon orthogonalises its own without a word to the others; where layers do not
    divide, some ranks hold one more. A leaf with fewer layers than ranks is split along its longest axis: there DTensor
    gathers what an optimizer needs. Numbers are replicated.
    """

    def rule(path: Path, leaf: Any) -> tuple[Placement, ...]:
        if not leaf.ndim:
            return (Replicate(),)
        longest = max(range(leaf.ndim), key=lambda axis: leaf.shape[axis])
        return (Shard(0 if leaf.shape[0] >= mesh.size() else longest),)

    return tree.update_in(params, rule)


def tensor_parallel(config: ModelConfig, mesh: DeviceMesh) -> Placements:
    """Placements for a model too large for one device: heads and hidden units are dealt out, the rest is replicated.

    `q, k, v, gate, up` are split where they write, `o, down` where they read: one reduction after attention and one
    after the feed-forward, inserted by DTensor.

    Raises:
        ValueError: heads or hidden units do not divide among the ranks.

    References: arXiv 1909.08053 (Megatron-LM).
    """
    size = mesh.size()
    for field in ("num_heads", "num_kv_heads", "ffn_dim", *(("lite_dim",) if config.ffn == "dual" else ())):
        if getattr(config, field) % size:
            raise ValueError(f"model.{field} ({getattr(config, field)}) does not divide among {size} processes")

    def rule(path: Path, leaf: Any) -> tuple[Placement, ...]:
        name = path.rpartition("/")[2]
        if name.removesuffix("_bias") in COLUMNS:
            return (Shard(1),)
        return (Shard(2) if name in ROWS else Replicate(),)

    return tree.update_in(gpt.spec(config), rule)


def place(params: Params, placements: Placements, mesh: DeviceMesh) -> Params:
    """Each rank's own part of parameters that every rank has whole; nothing is sent."""
    told = tree.flat(placements)
    return tree.update_in(params, lambda path, leaf: own(leaf, told[path], mesh))


def own(leaf: Tensor, placements: Sequence[Placement], mesh: DeviceMesh) -> DTensor:
    """This rank's part of a tensor that every rank has whole."""
    part = distribute_tensor(leaf, mesh, placements, src_data_rank=None).to_local()
    # A clone, because a slice would keep the whole leaf alive.
    shape, stride = leaf.shape, leaf.contiguous().stride()
    return DTensor.from_local(part.clone(), mesh, placements, run_check=False, shape=shape, stride=stride)
