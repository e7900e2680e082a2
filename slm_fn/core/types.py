"""The nouns every floor shares: parameter trees, transforms, train states, batches and the legend of dims.

Legend: B batch, T query time, S key time, D width, H query heads, K kv heads, C head channels,
F hidden, V vocab, L layers, E ensemble members, R rank, G quant group.

Invariant: every state here is a NamedTuple, hence a pytree: it maps, vmaps, traces and saves
without being told how.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

Params = dict[str, Any]
"""Nested dict; a leaf is a Tensor or a NamedTuple leaf kind that has taught `nn.ops.linear`."""
Updates = dict[str, Any]
"""Same tree as the params: what is added to them."""
OptState = Any
Aux = dict[str, Tensor]
"""What a loss reports beside its value; `aux["weight"]` counts what the mean was taken over."""
Metrics = dict[str, Tensor]
Path = str
"""Where a leaf hangs: `blocks/attn/q`."""
Where = Callable[[Path], bool]
"""Selects leaves by path, never by shape: stacked norms are 2-D, an untied head is too."""


class Transform(NamedTuple):
    """A gradient transformation: `init: Params -> S`, `update: Updates x S x Params -> Updates x S`."""

    init: Callable[[Params], OptState]
    update: Callable[[Updates, OptState, Params], tuple[Updates, OptState]]


class TrainState(NamedTuple):
    """All that a training step reads and returns. The place in the data is an integer kept beside it."""

    params: Params
    opt_state: OptState
    step: Tensor  # () int64, counts steps taken, skipped ones included


class LMBatch(NamedTuple):
    """Token rows and which targets count: `mask[:, t]` weighs the prediction of `tokens[:, t + 1]`."""

    tokens: Tensor  # (B, T+1) int64
    mask: Tensor  # (B, T) float32


class PairBatch(NamedTuple):
    """Preferred and rejected replies to the same prompts, row by row."""

    chosen: LMBatch
    rejected: LMBatch
    reference: Tensor  # (B, 2) float32: the reference model's log-probability of chosen and rejected, in nats


class Noisy(NamedTuple):
    """A batch and one number per row from which its chance is drawn: a row's dropout is its own, wherever it is run."""

    batch: Any
    noise: Tensor  # (B,) int64


Apply = Callable[..., tuple[Any, Any]]
"""`(params, tokens, past=None, *, noise, tap, head) -> (logits or whatever head returns, cache)`."""
Loss = Callable[[Params, Any], tuple[Tensor, Aux]]
Objective = Callable[[Apply], Loss]
"""What is trained for, before it meets a model: `next_token`, `dpo(...)`, and lifts of those."""
ValueAndGrad = Callable[..., tuple[tuple[Tensor, Aux], Params]]
"""`(params, batch, scale=None) -> ((value, aux), grads)`; `scale` multiplies the loss on its way back and is undone."""
Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def check_lm_batch(batch: LMBatch) -> LMBatch:
    """Return the batch if its shapes and dtypes are those of an `LMBatch`.

    Raises:
        ValueError: tokens are not (B, T+1) integers, or mask is not (B, T) floats.

    Example:
        >>> import torch
        >>> check_lm_batch(LMBatch(torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 4))).mask.shape
        torch.Size([2, 4])
    """
    tokens, mask = batch
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise ValueError(f"LMBatch.tokens must be integers of shape (B, T+1), got {tokens.dtype} {tuple(tokens.shape)}")
    if mask.shape != (tokens.shape[0], tokens.shape[1] - 1) or not mask.is_floating_point():
        want = (tokens.shape[0], tokens.shape[1] - 1)
        raise ValueError(f"LMBatch.mask must be floats of shape {want}, got {mask.dtype} {tuple(mask.shape)}")
    return batch


def check_pair_batch(batch: PairBatch) -> PairBatch:
    """Return the batch if chosen, rejected and reference agree on the number of rows.

    Raises:
        ValueError: a part has the wrong shape or another number of rows.
    """
    rows = check_lm_batch(batch.chosen).tokens.shape[0]
    if check_lm_batch(batch.rejected).tokens.shape[0] != rows or batch.reference.shape != (rows, 2):
        raise ValueError(
            f"PairBatch rows disagree: chosen {rows}, rejected {batch.rejected.tokens.shape[0]}, "
            f"reference {tuple(batch.reference.shape)} (wanted ({rows}, 2))"
        )
    return batch
