"""Gradients: value_and_grad by two engines, accumulation, per-example gradients, remat.

Invariant: whatever lifts a `Loss` or a `ValueAndGrad` returns the same function type, so lifts
nest in any order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.utils.checkpoint
from torch import Tensor

from slm_fn.core import tree
from slm_fn.core.types import Aux, Loss, Params, ValueAndGrad

GradEngine = Literal["autograd", "func"]


def is_count(name: str) -> bool:
    """Whether an entry of aux is a count rather than a mean, so that micro-batches add up.

    Counts are `weight`, `tokens` and `num_*`.
    """
    return name in ("weight", "tokens") or name.startswith("num_")


def split_counts(aux: Aux) -> tuple[Aux, Aux]:
    """Splits aux into (counts, means) by `is_count`."""
    counts = {name: value for name, value in aux.items() if is_count(name)}
    means = {name: value for name, value in aux.items() if name not in counts}
    return counts, means


def value_and_grad(loss: Loss, engine: GradEngine = "autograd") -> ValueAndGrad:
    """Lifts `Loss -> ValueAndGrad`: `(params, batch) -> ((value, aux), grads)`.

    Args:
        loss: the loss; grads are with respect to its params.
        engine: `autograd` frees the graph during the backward pass (about half the memory of
            `func` in eager mode) and allows remat and collectives: the engine of an ordinary
            training step. `func` is `torch.func.grad`, which composes with vmap: the engine for
            ensembles, per-example gradients and curvature.

    Example:
        >>> vg = value_and_grad(lambda p, x: ((p["w"] * x).sum(), {"weight": torch.tensor(1.0)}))
        >>> (value, aux), grads = vg({"w": torch.tensor([2.0])}, torch.tensor([3.0]))
        >>> value.item(), grads["w"].item()
        (6.0, 3.0)
    """
    lifts = {"autograd": _by_autograd, "func": _by_func}
    return lifts[engine](loss)


def _by_autograd(loss: Loss) -> ValueAndGrad:
    def vg(
        params: Params,
        batch: Any,
        scale: Tensor | None = None,
    ) -> tuple[tuple[Tensor, Aux], Params]:
        flat, spec = tree.flatten(params)
        leaves = [leaf.detach().requires_grad_() for leaf in flat]
        with torch.enable_grad():
            value, aux = loss(tree.unflatten(leaves, spec), batch)
        # A leaf that the loss does not read has a gradient of zero, as under torch.func.
        grads = torch.autograd.grad(value, leaves, scale, allow_unused=True, materialize_grads=True)
        if scale is not None:
            grads = tuple(grad / scale for grad in grads)
        detached_aux = tree.map(torch.Tensor.detach, aux)
        return (value.detach(), detached_aux), tree.unflatten(list(grads), spec)

    return vg


def _by_func(loss: Loss) -> ValueAndGrad:
    def scaled_loss(
        params: Params,
        batch: Any,
        scale: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, Aux]]:
        value, aux = loss(params, batch)
        scaled = value if scale is None else value * scale
        return scaled, (value, aux)

    grad = torch.func.grad(scaled_loss, has_aux=True)

    def vg(
        params: Params,
        batch: Any,
        scale: Tensor | None = None,
    ) -> tuple[tuple[Tensor, Aux], Params]:
        grads, value_and_aux = grad(params, batch, scale)
        if scale is not None:
            grads = tree.map(lambda leaf: leaf / scale, grads)
        return value_and_aux, grads

    return vg


def accumulate(num_micro: int) -> Callable[[ValueAndGrad], ValueAndGrad]:
    """Lifts `VG -> VG`: gradient accumulation over `num_micro` micro-batches of the batch's rows.

    Micro-batches are averaged by `aux["weight"]` (targets counted), so unequal masks and unequal
    sizes give the gradient of the full batch, not an average of averages. Counts (`is_count`) are
    summed. A batch of fewer rows than `num_micro` is split into single rows: of several processes
    one may have a row fewer than another.
    """

    def lift(vg: ValueAndGrad) -> ValueAndGrad:
        if num_micro == 1:
            return vg

        def accumulated(
            params: Params,
            batch: Any,
            scale: Tensor | None = None,
        ) -> tuple[tuple[Tensor, Aux], Params]:
            total: _Sums | None = None
            for micro_batch in _split_rows(batch, num_micro):
                sums = _weighted(*vg(params, micro_batch, scale))
                total = sums if total is None else tree.map(torch.add, total, sums)
            assert total is not None
            weight = total.counts["weight"]
            divisor = torch.where(weight > 0, weight, 1)
            value, means, grads = tree.map(lambda leaf: leaf / divisor, total[:3])
            return (value, {**means, **total.counts}), grads

        return accumulated

    return lift


class _Sums(NamedTuple):
    """Sums over micro-batches; all but the counts are multiplied by their micro-batch's weight."""

    value: Tensor
    means: Aux
    grads: Params
    counts: Aux


def _weighted(value_and_aux: tuple[Tensor, Aux], grads: Params) -> _Sums:
    """Multiplies a micro-batch's averages by its weight."""
    value, aux = value_and_aux
    counts, means = split_counts(aux)
    weight = aux["weight"]
    weighted_value, weighted_means, weighted_grads = tree.map(
        lambda leaf: leaf * weight, (value, means, grads)
    )
    return _Sums(weighted_value, weighted_means, weighted_grads, counts)


def _split_rows(batch: Any, num_parts: int) -> list[Any]:
    num_rows = tree.leaves(batch)[0].shape[0]
    num_parts = max(1, min(num_parts, num_rows))
    bounds = [num_rows * i // num_parts for i in range(num_parts + 1)]
    return [_slice_rows(batch, start, stop) for start, stop in itertools.pairwise(bounds)]


def _slice_rows(
    batch: Any,
    start: int,
    stop: int,
) -> Any:
    return tree.map(lambda leaf: leaf[start:stop], batch)


def per_example(loss: Loss) -> Callable[[Params, Any], Params]:
    """Lifts `Loss -> grad` to the gradient of every row: each leaf gains a first axis B.

    By vmap over batches of one row; the loss must be differentiable by torch.func.
    """

    def row_loss(params: Params, row: Any) -> Tensor:
        batch = tree.map(lambda leaf: leaf[None], row)
        value, _ = loss(params, batch)
        return value

    row_grad = torch.func.grad(row_loss)
    rows_grad: Callable[[Params, Any], Params] = torch.func.vmap(row_grad, in_dims=(None, 0))
    return rows_grad


def remat(block: Callable[..., Any]) -> Callable[..., Any]:
    """Lifts `f -> f`: rematerialisation. The backward pass recomputes the activations.

    For the autograd engine only.

    References: arXiv 1604.06174.
    """

    def recomputed(*args: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(block, *args, use_reentrant=False)

    return recomputed
