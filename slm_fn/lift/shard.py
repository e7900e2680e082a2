"""Data, fully sharded and tensor parallelism: value_and_grad over a mesh of processes.

Each process passes its own rows to the same function; between steps the parameters are DTensors
whose placements are a tree. A rank may have more rows than another, or none: averages are
weighted by `aux["weight"]`.

Invariant: gradients and what the loss reports are those of one process on all ranks' rows together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)
from torch.distributed.tensor.experimental import implicit_replication

from slm_fn.core import tree
from slm_fn.core.grads import split_counts
from slm_fn.core.types import Aux, Params, Path, ValueAndGrad
from slm_fn.nn import gpt
from slm_fn.nn.gpt import ModelConfig

Placements: TypeAlias = dict[str, Any]
"""A nested dict like the params; a leaf is a tuple with a placement for each axis of the mesh."""

COLUMNS = ("q", "k", "v", "gate", "up")
"""Block matrices sharded along their outputs, which are heads or hidden units."""

ROWS = ("o", "down")
"""Block matrices sharded along their inputs."""


def replicate(mesh: DeviceMesh) -> Callable[[ValueAndGrad], ValueAndGrad]:
    """Lifts `VG -> VG`: data parallelism. Each rank holds all parameters and reduces gradients.

    Leaves are stacked over layers, so they are few and large, and each is a bucket of its own.
    Apply it after `accumulate`, and one reduction serves all micro-batches: `pipe(value_and_grad,
    accumulate(4), replicate(mesh))(loss)`. Leaves that are sharded over another axis of the mesh
    are reduced shard by shard.
    """
    group = mesh.get_group()

    def lift(vg: ValueAndGrad) -> ValueAndGrad:
        def replicated(
            params: Params,
            batch: Any,
            scale: Tensor | None = None,
        ) -> tuple[tuple[Tensor, Aux], Params]:
            value_and_aux, grads = vg(params, batch, scale)
            value_and_aux, share = _average(value_and_aux, group)
            grads = tree.map(lambda grad: _multiply_or_zero(grad, share), grads)
            reductions = [
                dist.all_reduce(_local_tensor(grad), group=group, async_op=True)
                for grad in tree.leaves(grads)
            ]
            for reduction in reductions:
                reduction.wait()
            return value_and_aux, grads

        return replicated

    return lift


def fsdp(mesh: DeviceMesh) -> Callable[[ValueAndGrad], ValueAndGrad]:
    """Lifts `VG -> VG`: fully sharded data parallelism, `scatter . vg . gather`.

    Parameters arrive sharded (see `shard_params`) and gradients leave with the same placements,
    so the optimizer's state and its work are sharded as well. Begin with `shard_params(params,
    zero_placements(params, mesh), mesh)`. During `vg` each rank holds all parameters.

    References: arXiv 1910.02054 (ZeRO), 2304.11277 (FSDP).
    """
    group = mesh.get_group()

    def lift(vg: ValueAndGrad) -> ValueAndGrad:
        def sharded(
            params: Params,
            batch: Any,
            scale: Tensor | None = None,
        ) -> tuple[tuple[Tensor, Aux], Params]:
            full_params = tree.map(tree.full_tensor, params)
            value_and_aux, grads = vg(full_params, batch, scale)
            value_and_aux, share = _average(value_and_aux, group)

            def scatter(grad: Tensor, like: DTensor) -> Tensor:
                partial_sum = DTensor.from_local(
                    _multiply_or_zero(grad, share), like.device_mesh, [Partial()], run_check=False
                )
                return partial_sum.redistribute(placements=like.placements)

            return value_and_aux, tree.map(scatter, grads, params)

        return sharded

    return lift


def implicit(vg: ValueAndGrad) -> ValueAndGrad:
    """Lifts `VG -> VG` for parameters with `tensor_parallel` placements.

    The batch and all constants count as replicated. The forward pass and the loss do not change;
    they need the attention backend `plain`, as the fused kernels have no rule for shards, and the
    autograd engine. Value and aux are returned as plain tensors, gradients with the placements of
    the params.
    """

    def tensor_parallel_vg(
        params: Params,
        batch: Any,
        scale: Tensor | None = None,
    ) -> tuple[tuple[Tensor, Aux], Params]:
        with implicit_replication():
            value_and_aux, grads = vg(params, batch, scale)
            grads = tree.map(_redistribute_like, grads, params)
            return tree.map(tree.full_tensor, value_and_aux), grads

    return tensor_parallel_vg


def _redistribute_like(grad: DTensor, param: DTensor) -> Tensor:
    return grad.redistribute(placements=param.placements)


def _average(
    value_and_aux: tuple[Tensor, Aux], group: dist.ProcessGroup
) -> tuple[tuple[Tensor, Aux], Tensor]:
    """Averages value and aux over all ranks.

    Returns:
        The averages, and this rank's share of the total weight.
    """
    value, aux = value_and_aux
    weight = aux["weight"]
    counts, means = split_counts(aux)
    weighted_means = {name: _multiply_or_zero(mean, weight) for name, mean in means.items()}
    weighted_value = _multiply_or_zero(value, weight)
    sums = _all_reduce_tree((weighted_value, weighted_means, counts), group)
    value_sum, mean_sums, count_sums = sums
    total = count_sums["weight"]
    total = torch.where(total > 0, total, 1)
    averages = tree.map(lambda leaf: leaf / total, mean_sums)
    return (value_sum / total, {**averages, **count_sums}), weight / total


def _multiply_or_zero(x: Tensor, weight: Tensor) -> Tensor:
    """Returns `x * weight`, and zero where nothing was counted: a mean over no rows may be NaN."""
    return torch.where(weight > 0, x * weight, 0)


def _all_reduce_tree(values: Any, group: dist.ProcessGroup) -> Any:
    """Sums every leaf over the ranks, with one reduction for each dtype."""
    leaves, spec = tree.flatten(values)
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
        indices = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
        flat = torch.cat([leaves[i].reshape(-1) for i in indices])
        dist.all_reduce(flat, group=group)
        lengths = [leaves[i].numel() for i in indices]
        for i, chunk in zip(indices, torch.split(flat, lengths), strict=True):
            leaves[i] = chunk.view(leaves[i].shape)
    return tree.unflatten(leaves, spec)


def _local_tensor(leaf: Tensor) -> Tensor:
    return leaf.to_local() if isinstance(leaf, DTensor) else leaf


def zero_placements(params: Params, mesh: DeviceMesh) -> Placements:
    """Returns placements for `fsdp`: each leaf along its first axis, for block weights the layers.

    A rank then holds full matrices, and Muon orthogonalises its own without communication; where
    the layers do not divide evenly, some ranks hold one more. A leaf with fewer layers than ranks
    is sharded along its longest axis, and DTensor gathers what an optimizer needs. Scalars are
    replicated.
    """

    def placements_of(path: Path, leaf: Any) -> tuple[Placement, ...]:
        if not leaf.ndim:
            return (Replicate(),)
        if leaf.shape[0] >= mesh.size():
            return (Shard(0),)
        longest_axis = max(range(leaf.ndim), key=lambda axis: leaf.shape[axis])
        return (Shard(longest_axis),)

    return tree.map_with_path(params, placements_of)


def tensor_parallel(config: ModelConfig, mesh: DeviceMesh) -> Placements:
    """Returns placements for a model too large for one device: heads and hidden units are sharded.

    `q, k, v, gate, up` are sharded along their outputs, `o, down` along their inputs, and the
    rest is replicated: one reduction after attention and one after the feed-forward, inserted by
    DTensor.

    Raises:
        ValueError: heads or hidden units do not divide evenly among the ranks.

    References: arXiv 1909.08053 (Megatron-LM).
    """
    _check_divisible(config, mesh.size())

    def placements_of(path: Path, leaf: Any) -> tuple[Placement, ...]:
        name = path.rpartition("/")[2]
        if name.removesuffix("_bias") in COLUMNS:
            return (Shard(1),)
        if name in ROWS:
            return (Shard(2),)
        return (Replicate(),)

    return tree.map_with_path(gpt.param_specs(config), placements_of)


def _check_divisible(config: ModelConfig, num_ranks: int) -> None:
    fields = ["num_heads", "num_kv_heads", "ffn_dim"]
    if config.ffn == "dual":
        fields.append("lite_dim")
    for field in fields:
        value = getattr(config, field)
        if value % num_ranks:
            raise ValueError(f"model.{field} ({value}) does not divide among {num_ranks} processes")


def shard_params(
    params: Params,
    placements: Placements,
    mesh: DeviceMesh,
) -> Params:
    """Returns this rank's shards of parameters that every rank holds in full; sends nothing."""
    placement_of = tree.flatten_dict(placements)

    def shard_leaf(path: Path, leaf: Tensor) -> DTensor:
        return shard_tensor(leaf, placement_of[path], mesh)

    return tree.map_with_path(params, shard_leaf)


def shard_tensor(
    leaf: Tensor,
    placements: Sequence[Placement],
    mesh: DeviceMesh,
) -> DTensor:
    """Returns this rank's shard of a tensor that every rank holds in full."""
    local = distribute_tensor(leaf, mesh, placements, src_data_rank=None).to_local()
    return DTensor.from_local(
        local.clone(),  # a slice would keep the full leaf alive
        mesh,
        placements,
        run_check=False,
        shape=leaf.shape,
        stride=leaf.contiguous().stride(),
    )
