"""Shared types: parameter trees, batches, states, and the five function types.

Legend of dimensions: B batch, T query time, S key time, D width, H query heads, K kv heads,
C head channels, F hidden, V vocab, L layers, E ensemble members, R rank, G quantization group.

Invariant: every state here is a NamedTuple, hence a pytree: it maps, vmaps, traces and saves
without further registration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, NewType, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

Params: TypeAlias = dict[str, Any]
"""Nested dict of parameters; a leaf is a Tensor or a leaf kind registered with `nn.ops.linear`."""

Updates: TypeAlias = dict[str, Any]
"""A tree shaped like the params: the values added to them."""

OptState: TypeAlias = Any
"""The state of an optimizer: any pytree of tensors."""

Aux: TypeAlias = dict[str, Tensor]
"""Values reported beside a loss; `aux["weight"]` is the count that its mean was taken over."""

Metrics: TypeAlias = dict[str, Tensor]
"""Values that a training step reports: the loss, the gradient norm and the loss's `Aux`."""

Path: TypeAlias = str
"""The position of a leaf in a tree, such as `blocks/attn/q`."""

PathPredicate: TypeAlias = Callable[[Path], bool]
"""Selects leaves by path, never by shape: stacked norms are 2-D, and so is an untied head."""

Tap: TypeAlias = Callable[[str, Tensor], Tensor]
"""`(name, activation) -> activation`: reads, and may replace, an activation of the model."""


class LMBatch(NamedTuple):
    """Token rows and loss weights: `mask[:, t]` weights the prediction of `tokens[:, t + 1]`."""

    tokens: Tensor  # (B, T+1) int64
    mask: Tensor  # (B, T) float32


class PairBatch(NamedTuple):
    """Preferred and rejected replies to the same prompts, row by row."""

    chosen: LMBatch
    rejected: LMBatch
    reference: Tensor  # (B, 2) float32: reference log-probabilities of chosen and rejected, in nats


class SeededBatch(NamedTuple):
    """A batch with one dropout seed per row: a row's dropout does not depend on its batch."""

    batch: Any
    seeds: Tensor  # (B,) int64


class TrainState(NamedTuple):
    """Everything that a training step reads and returns.

    The position in the data is an integer that the training loop keeps beside it.
    """

    params: Params
    opt_state: OptState
    step: Tensor  # () int64, the number of steps taken, skipped ones included


DonatedState = NewType("DonatedState", TrainState)
"""A `TrainState` whose tensors the next step may overwrite: the caller keeps no other use of it."""


class Transform(NamedTuple):
    """A gradient transformation, as in optax.

    `init: Params -> S`; `update: Updates x S x Params -> Updates x S`.
    """

    init: Callable[[Params], OptState]
    update: Callable[[Updates, OptState, Params], tuple[Updates, OptState]]


@runtime_checkable
class Head(Protocol):
    """The last operation of a model: `(weight, hidden_BTD) -> output`.

    `softcap` is passed only by models whose config caps the logits.
    """

    def __call__(
        self,
        weight: Any,
        hidden: Tensor,
        /,
        *,
        softcap: float = 0.0,
    ) -> Any:
        """Returns the logits, or any value that a loss computes from the head's weight directly."""


@runtime_checkable
class ModelApply(Protocol):
    """The smallest model, without a replaceable head: `(params, tokens) -> (output, cache)`."""

    def __call__(self, params: Params, tokens: Tensor, past: Any = None, /) -> tuple[Any, Any]:
        """Returns the output and the cache after it."""


@runtime_checkable
class Apply(Protocol):
    """The forward pass of a decoder: `nn.gpt.apply` with its config bound, and every lift of it."""

    def __call__(  # noqa: PLR0913 - all options of a forward pass
        self,
        params: Params,
        tokens: Tensor,
        past: Any = None,
        /,
        *,
        dropout_seeds: Tensor | None = ...,
        segments: Tensor | None = ...,
        tap: Tap = ...,
        on_aux: Callable[[str, Tensor], Any] = ...,
        head: Head = ...,
    ) -> tuple[Any, Any]:
        """Runs the model.

        Args:
            params: the parameter tree.
            tokens: token ids, (B, T) int64.
            past: the key/value cache of the tokens before, or None.
            dropout_seeds: one seed per row, (B,) int64; given only in training.
            segments: a document number per token, (B, T) int64.
            tap: called with every activation; its result replaces the activation.
            on_aux: called with outputs of a layer other than its activations.
            head: the last operation; logits by default.

        Returns:
            What `head` returns, and the cache after these tokens (None without `past`).
        """


@runtime_checkable
class Loss(Protocol):
    """`(params, batch) -> (value, aux)`: a scalar to minimise and the values reported with it."""

    def __call__(self, params: Params, batch: Any, /) -> tuple[Tensor, Aux]:
        """Returns the loss, (), and its `Aux`; `aux["weight"]` is the number of counted targets."""


Objective: TypeAlias = Callable[[Apply], Loss]
"""A training objective before it meets a model: `next_token`, `dpo(...)`, and lifts of those."""


@runtime_checkable
class ValueAndGrad(Protocol):
    """`(params, batch, scale) -> ((value, aux), grads)`: a loss together with its gradient."""

    def __call__(
        self, params: Params, batch: Any, scale: Tensor | None = None, /
    ) -> tuple[tuple[Tensor, Aux], Params]:
        """Returns the loss, its `Aux` and the gradients.

        Args:
            params: the parameter tree.
            batch: any batch that the loss accepts.
            scale: multiplies the loss in the backward pass and is divided out of the gradients.
        """


@runtime_checkable
class Step(Protocol):
    """A training step: `(state, batch) -> (state, metrics)`. The old state stays valid."""

    def __call__(self, state: TrainState, batch: Any, /) -> tuple[TrainState, Metrics]:
        """Returns the state after one optimizer update, and the metrics of that update."""


@runtime_checkable
class DonatingStep(Protocol):
    """A training step that overwrites the state it receives, so that no second state is allocated.

    Use only the state it returns. Its parameter type differs from that of `Step`, so that mypy
    refuses a donating step where the old state is needed again.
    """

    def __call__(self, state: DonatedState, batch: Any, /) -> tuple[DonatedState, Metrics]:
        """Returns the state after one update, in the tensors of `state`, and the metrics."""


def check_lm_batch(batch: LMBatch) -> LMBatch:
    """Returns the batch if its shapes and dtypes are those of an `LMBatch`.

    Raises:
        ValueError: tokens are not (B, T+1) integers, or mask is not (B, T) floats.

    Example:
        >>> import torch
        >>> batch = LMBatch(torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 4))
        >>> check_lm_batch(batch).mask.shape
        torch.Size([2, 4])
    """
    tokens, mask = batch
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise ValueError(
            "LMBatch.tokens must be integers of shape (B, T+1), "
            f"got {tokens.dtype} {tuple(tokens.shape)}"
        )
    expected_shape = (tokens.shape[0], tokens.shape[1] - 1)
    if mask.shape != expected_shape or not mask.is_floating_point():
        raise ValueError(
            f"LMBatch.mask must be floats of shape {expected_shape}, "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
    return batch


def check_pair_batch(batch: PairBatch) -> PairBatch:
    """Returns the batch if chosen, rejected and reference agree on the number of rows.

    Raises:
        ValueError: a field has the wrong shape or another number of rows.
    """
    num_chosen = check_lm_batch(batch.chosen).tokens.shape[0]
    num_rejected = check_lm_batch(batch.rejected).tokens.shape[0]
    if num_rejected != num_chosen or batch.reference.shape != (num_chosen, 2):
        raise ValueError(
            f"PairBatch rows disagree: chosen {num_chosen}, rejected {num_rejected}, "
            f"reference {tuple(batch.reference.shape)} (expected ({num_chosen}, 2))"
        )
    return batch
