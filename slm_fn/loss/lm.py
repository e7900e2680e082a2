"""Next-token loss by a chunked linear + cross entropy that never holds all logits.

Invariant: a loss is a sum over counted targets divided by `aux["weight"]`, their number, so
micro-batches add up to the full batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from slm_fn.core.types import Apply, Aux, LMBatch, Loss, ModelApply, Params

CHUNK_TOKENS = 256
"""Tokens per chunk: 256 x 32k logits are 32 MiB, and the products are wide enough to be fast."""


def token_nll(
    weight: Float[Tensor, "V D"],
    hidden: Float[Tensor, "... D"],
    targets: Int[Tensor, ...],
    softcap: float = 0.0,
    smoothing: float = 0.0,
) -> Float[Tensor, ...]:
    """Returns the negative log-likelihood of each target in nats, float32, by plain cross entropy.

    It keeps every logit, and is differentiable any number of times and in forward mode: the
    reference implementation of the chunked form.

    Args:
        weight: the weight of the head.
        hidden: the last hidden states.
        targets: token ids.
        softcap: logits become `softcap * tanh(logits / softcap)`; 0 leaves them (arXiv 2408.00118).
        smoothing: this share of the target's probability is spread over the vocabulary (arXiv
            1512.00567).
    """
    logits = F.linear(hidden, weight.to(hidden.dtype)).float()
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    log_normalizer = logits.logsumexp(-1)
    target_logits = logits.gather(-1, targets[..., None]).squeeze(-1)
    nll = log_normalizer - target_logits
    if not smoothing:
        return nll
    uniform_nll = log_normalizer - logits.mean(-1)
    return torch.lerp(nll, uniform_nll, smoothing)


def divide_or_zero(total: Float[Tensor, ""], weight: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Returns `total / weight`, and zero where nothing was counted (`total` is zero there)."""
    return total / torch.where(weight > 0, weight, 1)


class _ChunkedNLL(torch.autograd.Function):
    """sum(mask * nll), with the gradient computed in the forward pass from the same logits.

    The gradients are outputs as well: *their* gradient (double differentiation) arrives in
    `backward` and raises there, where it would otherwise silently be zero. Without a `jvp`,
    forward mode raises by itself.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        weight: Tensor,
        hidden_ND: Tensor,
        targets_N: Tensor,
        mask_N: Tensor,
        softcap: float,
        smoothing: float,
    ) -> tuple[Tensor, ...]:
        cast_weight = weight.to(hidden_ND.dtype)
        grad_weight: Tensor | None = None
        grad_hidden_chunks = []
        nll_chunks = []
        chunks = zip(
            torch.split(hidden_ND, CHUNK_TOKENS),
            torch.split(targets_N, CHUNK_TOKENS),
            torch.split(mask_N, CHUNK_TOKENS),
            strict=True,
        )
        for hidden, targets, mask in chunks:
            nll, grad_logits = _nll_and_gradient(
                F.linear(hidden, cast_weight), targets[:, None], softcap, smoothing
            )
            nll_chunks.append(nll)
            # The mask multiplies the narrow side of both products; out of place, as in-place fails
            # under vmap.
            mask = mask[:, None].to(hidden.dtype)
            grad_hidden_chunks.append((grad_logits @ cast_weight) * mask)
            chunk_grad = grad_logits.mT @ (hidden * mask)
            # Summed in the weight's own precision.
            if grad_weight is None:
                grad_weight = chunk_grad.to(weight.dtype)
            else:
                grad_weight = grad_weight + chunk_grad
        assert grad_weight is not None
        nll_N = torch.cat(nll_chunks)
        return (nll_N * mask_N).sum(), grad_weight, torch.cat(grad_hidden_chunks), nll_N

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, *grads_of_gradients: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        # Dynamo passes tensors here in a first derivative as well, and drops a second one before it
        # arrives.
        is_second_derivative = any(g is not None for g in grads_of_gradients)
        if is_second_derivative and not torch.compiler.is_compiling():
            raise RuntimeError(
                "the chunked loss can be differentiated once; "
                "use next_token(chunked=False) for higher derivatives"
            )
        if grad is None:
            return None, None, None, None, None, None
        grad_weight, grad_hidden, grad_mask = ctx.saved_tensors
        return (
            grad_weight * grad,
            grad_hidden * grad.to(grad_hidden.dtype),
            None,
            grad_mask * grad,
            None,
            None,
        )


_apply_chunked_nll: Callable[..., tuple[Tensor, ...]] = _ChunkedNLL.apply


def _nll_and_gradient(
    logits_CV: Tensor,
    targets_C1: Tensor,
    softcap: float,
    smoothing: float,
) -> tuple[Tensor, Tensor]:
    """Returns the loss of each row in float32, and its derivative by the logits in their dtype."""
    bend = (logits_CV.float() / softcap).tanh() if softcap else None
    # One expression a line and no name for an intermediate matrix: two of these matrices are
    # alive at a time, not four.
    logp = (logits_CV.float() if bend is None else softcap * bend).log_softmax(-1)
    target_logp = logp.gather(-1, targets_C1)
    mean_logp = logp.mean(-1, keepdim=True) if smoothing else None
    grad = logp.exp()
    del logp
    target_grad = torch.expm1(target_logp)
    if mean_logp is None:
        nll = -target_logp
    else:
        nll = torch.lerp(-target_logp, -mean_logp, smoothing)
        grad = grad - smoothing / grad.shape[-1]
        target_grad = target_grad + smoothing * (1 - 1 / grad.shape[-1])
    if bend is not None:
        grad = grad * (1 - bend.square())
        target_grad = target_grad * (1 - bend.gather(-1, targets_C1).square())
    # The target's entry is written last: `p - 1` in half precision would lose the gradient of a
    # token that is predicted with near certainty.
    grad = grad.to(logits_CV.dtype).scatter(-1, targets_C1, target_grad.to(logits_CV.dtype))
    return nll.squeeze(-1), grad


def chunked_nll(
    weight: Float[Tensor, "V D"],
    hidden: Float[Tensor, "B T D"],
    targets: Int[Tensor, "B T"],
    mask: Float[Tensor, "B T"],
    softcap: float = 0.0,
    smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Returns `sum(mask * token_nll(...))` without keeping the logits.

    Value and first gradient are the same. Works under torch.func.grad, vmap and torch.compile.
    The log-sum-exp is float32 whatever the dtype of the products.

    Args:
        weight: the weight of the head.
        hidden: the last hidden states.
        targets: token ids.
        mask: the weight of each target.
        softcap: see `token_nll`.
        smoothing: see `token_nll`.

    Raises:
        RuntimeError: on double differentiation or forward mode, whose result would be wrong; use
            `token_nll` there. Inside `torch.compile` a second derivative is wrong without an error.
    """
    outputs = _apply_chunked_nll(
        weight, hidden.flatten(0, 1), targets.flatten(), mask.flatten(), softcap, smoothing
    )
    return outputs[0]


def next_token(
    apply: Apply,
    chunked: bool = True,
    smoothing: float = 0.0,
) -> Loss:
    """Lifts `apply -> Loss`: the mean negative log-likelihood of the counted next tokens, in nats.

    Args:
        apply: the model.
        chunked: through `chunked_nll`; False uses plain cross entropy, for curvature and forward
            mode.
        smoothing: label smoothing; the loss is then no likelihood, while validation stays one.

    Returns:
        A loss of `LMBatch`es; aux holds `weight`, the number of counted targets.

    Example:
        >>> from slm_fn.nn import gpt
        >>> config = gpt.ModelConfig(vocab_size=64, dim=32, num_layers=1, ffn_dim=64)
        >>> loss = next_token(partial(gpt.apply, config))
        >>> batch = LMBatch(torch.zeros(1, 9, dtype=torch.long), torch.ones(1, 8))
        >>> value, aux = loss(gpt.init(config, 0), batch)
        >>> aux["weight"].item()
        8.0
    """

    def loss(params: Params, batch: LMBatch) -> tuple[Tensor, Aux]:
        inputs = batch.tokens[:, :-1]
        targets = batch.tokens[:, 1:]
        weight = batch.mask.sum()
        if chunked:
            head = partial(chunked_nll, targets=targets, mask=batch.mask, smoothing=smoothing)
            total, _ = apply(params, inputs, head=head)
        else:
            head = partial(token_nll, targets=targets, smoothing=smoothing)
            nll, _ = apply(params, inputs, head=head)
            total = (nll * batch.mask).sum()
        return divide_or_zero(total, weight), {"weight": weight}

    return loss


def next_token_from_logits(apply: ModelApply) -> Loss:
    """Lifts `apply -> Loss` for a model without a replaceable head (`nn.module.from_module`).

    The value of `next_token`, by plain cross entropy over the model's logits.
    """

    def loss(params: Params, batch: LMBatch) -> tuple[Tensor, Aux]:
        logits, _ = apply(params, batch.tokens[:, :-1])
        targets = batch.tokens[:, 1:].flatten()
        nll = F.cross_entropy(logits.float().flatten(0, 1), targets, reduction="none")
        weight = batch.mask.sum()
        total = (nll * batch.mask.flatten()).sum()
        return divide_or_zero(total, weight), {"weight": weight}

    return loss


def sequence_logprob(
    apply: Apply,
    params: Params,
    batch: LMBatch,
) -> Float[Tensor, " B"]:
    """Returns the summed log-probability of each row's counted tokens, in nats."""
    head = partial(token_nll, targets=batch.tokens[:, 1:])
    nll, _ = apply(params, batch.tokens[:, :-1], head=head)
    logprob: Tensor = -(nll * batch.mask).sum(-1)
    return logprob
