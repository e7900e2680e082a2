"""value_and_grad with two engines behind one signature, accumulate, per_example and remat.

Invariant: whatever wraps a `Loss` or a `ValueAndGrad` returns the same arrow, so wraps stack in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.utils.checkpoint
from torch import Tensor

from slm_fn.core import tree
from slm_fn.core.types import Loss, Params, ValueAndGrad

Engine = Literal["autograd", "func"]


def is_count(name: str) -> bool:
    """Whether an entry of aux counts rather than averages, so that parts add up: `weight`, `tokens`, `num_*`."""
    return name in ("weight", "tokens") or name.startswith("num_")


def value_and_grad(loss: Loss, engine: Engine = "autograd") -> ValueAndGrad:
    """Lift `Loss -> ValueAndGrad`: `(params, batch) -> ((value, aux), grads)`.

    `autograd` frees the graph as it walks it (about half the memory of `func` in eager mode) and allows
    remat and collectives; it is the engine of a plain training step. `func` is `torch.func.grad_and_value`:
    it composes with vmap, so ensembles, per-example gradients and curvature take it.

    Example:
        >>> vg = value_and_grad(lambda p, x: ((p["w"] * x).sum(), {"weight": torch.tensor(1.0)}))
        >>> (value, aux), grads = vg({"w": torch.tensor([2.0])}, torch.tensor([3.0]))
        >>> value.item(), grads["w"].item()
        (6.0, 3.0)
    """
    return {"autograd": _autograd, "func": _func}[engine](loss)


def _autograd(loss: Loss) -> ValueAndGrad:
    def vg(params: Params, batch: Any, scale: Tensor | None = None) -> tuple[tuple[Tensor, Any], Params]:
        flat, spec = tree.flatten(params)
        flat = [leaf.detach().requires_grad_() for leaf in flat]
        with torch.enable_grad():
            value, aux = loss(tree.unflatten(flat, spec), batch)
        # A leaf that the loss does not read has a gradient of zero, as under torch.func.
        grads = torch.autograd.grad(value, flat, scale, allow_unused=True, materialize_grads=True)
        if scale is not None:
            grads = tuple(g / scale for g in grads)
        return (value.detach(), tree.map(lambda x: x.detach(), aux)), tree.unflatten(list(grads), spec)

    return vg


def _func(loss: Loss) -> ValueAndGrad:
    def scaled(params: Params, batch: Any, scale: Tensor | None) -> tuple[Tensor, tuple[Tensor, Any]]:
        value, aux = loss(params, batch)
        return value if scale is None else value * scale, (value, aux)

    grad = torch.func.grad(scaled, has_aux=True)

    def vg(params: Params, batch: Any, scale: Tensor | None = None) -> tuple[tuple[Tensor, Any], Params]:
        grads, found = grad(params, batch, scale)
        return found, grads if scale is None else tree.map(lambda g: g / scale, grads)

    return vg


def accumulate(num_micro: int) -> Callable[[ValueAndGrad], ValueAndGrad]:
    """Lift `VG -> VG`: the rows of a batch in `num_micro` parts, one after another, as if taken at once.

    Parts are averaged by `aux["weight"]` (targets counted), so unequal masks and unequal parts give the gradient of
    the whole batch, not an average of averages. Counts (`is_count`) are summed. Of fewer rows than `num_micro` each is
    a part: among several processes one may have a row less than another.
    """

    def lift(vg: ValueAndGrad) -> ValueAndGrad:
        if num_micro == 1:
            return vg

        def accumulated(params: Params, batch: Any, scale: Tensor | None = None) -> tuple[tuple[Tensor, Any], Params]:
            total = None
            for part in _split(batch, num_micro):
                (value, aux), grads = vg(params, part, scale)
                w = aux["weight"]
                counts = {name: x for name, x in aux.items() if is_count(name)}
                means = {name: x for name, x in aux.items() if name not in counts}
                row = (tree.map(lambda x, w=w: x * w, (value, means, grads)), counts)
                total = row if total is None else tree.map(torch.add, total, row)
            assert total is not None
            w = total[1]["weight"]
            value, aux, grads = tree.map(lambda x: x / torch.where(w > 0, w, 1), total[0])
            return (value, {**aux, **total[1]}), grads

        return accumulated

    return lift


def _split(batch: Any, n: int) -> list[Any]:
    rows = tree.leaves(batch)[0].shape[0]
    n = max(1, min(n, rows))
    ends = [rows * i // n for i in range(n + 1)]
    return [tree.map(lambda x, i=i: x[ends[i] : ends[i + 1]], batch) for i in range(n)]


def per_example(loss: Loss) -> Callable[[Params, Any], Params]:
    """Gradients of every row on its own: each leaf gains a first axis B. By `vmap` over one-row batches."""
    grad = torch.func.grad(lambda params, row: loss(params, tree.map(lambda x: x[None], row))[0])
    return torch.func.vmap(grad, in_dims=(None, 0))


def remat(block: Callable[..., Any]) -> Callable[..., Any]:
    """Forget a function's activations and compute them again in the backward pass (autograd engine only).

    References: arXiv 1604.06174.
    """

    def recomputed(*args: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(block, *args, use_reentrant=False)

    return recomputed
