"""Next-token loss through a chunked linear + cross entropy: no (tokens x vocabulary) matrix is kept.

Invariant: losses are sums over counted targets divided by `aux["weight"]`, their number, so parts add up to the whole.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from slm_fn.core.types import Apply, Aux, LMBatch, Loss, Params

CHUNK = 256
"""Tokens per chunk: logits of 256 x 32k floats are 32 MiB, and the products are still wide enough to be fast."""


def token_nll(
    weight: Float[Tensor, "V D"],
    hidden: Float[Tensor, "... D"],
    targets: Int[Tensor, ...],
    softcap: float = 0.0,
    smoothing: float = 0.0,
) -> Float[Tensor, ...]:
    """Negative log-likelihood of each target in nats, float32, by plain cross entropy over all logits.

    Differentiable any number of times and forward too; keeps every logit. The oracle of the chunked form.

    Args:
        softcap: logits are bent to `softcap * tanh(logits / softcap)`; 0 leaves them (arXiv 2408.00118).
        smoothing: this share of the target's probability is spread over the vocabulary (arXiv 1512.00567).
    """
    logits = F.linear(hidden, weight.to(hidden.dtype)).float()
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    lse = logits.logsumexp(-1)
    nll = lse - logits.gather(-1, targets[..., None]).squeeze(-1)
    return torch.lerp(nll, lse - logits.mean(-1), smoothing) if smoothing else nll


def mean_over(total: Float[Tensor, ""], weight: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """`total / weight`, and zero where nothing is counted."""
    return total / torch.where(weight > 0, weight, 1)


class _ChunkedNLL(torch.autograd.Function):
    """sum(mask * nll), with the gradient made in the forward pass, chunk by chunk, while the logits are at hand.

    The gradients are outputs too: asking for *their* gradient (double differentiation) arrives in `backward`
    and raises there, where it would else be silently zero. Without a `jvp`, forward mode raises by itself.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        weight: Tensor, hidden_ND: Tensor, targets_N: Tensor, mask_N: Tensor, softcap: float, smoothing: float
    ) -> tuple[Tensor, ...]:
        w = weight.to(hidden_ND.dtype)
        grad_weight: Tensor | None = None
        grad_hidden, nll = [], []
        for h, t, m in zip(hidden_ND.split(CHUNK), targets_N.split(CHUNK), mask_N.split(CHUNK), strict=True):
            nll_C, g = _with_gradient(F.linear(h, w), t[:, None], softcap, smoothing)
            nll.append(nll_C)
            # The mask goes to the narrow side of both products; out of place, as in-place fails under vmap.
            m = m[:, None].to(h.dtype)
            grad_hidden.append((g @ w) * m)
            part = g.mT @ (h * m)  # summed in the weight's own precision
            grad_weight = part.to(weight.dtype) if grad_weight is None else grad_weight + part
        assert grad_weight is not None
        nll_N = torch.cat(nll)
        return (nll_N * mask_N).sum(), grad_weight, torch.cat(grad_hidden), nll_N

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *through_gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        # Dynamo always hands in tensors here, also in a first derivative, and loses a second one before it arrives.
        if not torch.compiler.is_compiling() and any(g is not None for g in through_gradients):
            raise RuntimeError("the chunked loss can be differentiated once; take next_token(chunked=False) for more")
        if grad is None:
            return None, None, None, None, None, None
        grad_weight, grad_hidden, grad_mask = ctx.saved_tensors
        return grad_weight * grad, grad_hidden * grad.to(grad_hidden.dtype), None, grad_mask * grad, None, None


def _with_gradient(logits_CV: Tensor, t: Tensor, softcap: float, smoothing: float) -> tuple[Tensor, Tensor]:
    """The loss of a chunk's rows in float32, and its derivative by the logits in their dtype."""
    bend = (logits_CV.float() / softcap).tanh() if softcap else None
    # One expression a line and no name for what is passed on: two of these matrices are alive at a time, not four.
    logp = (logits_CV.float() if bend is None else softcap * bend).log_softmax(-1)
    logp_t, mean = logp.gather(-1, t), logp.mean(-1, keepdim=True) if smoothing else None
    g, g_t = logp.exp(), torch.expm1(logp_t)
    del logp
    nll = -logp_t if mean is None else torch.lerp(-logp_t, -mean, smoothing)
    if smoothing:
        g, g_t = g - smoothing / g.shape[-1], g_t + smoothing * (1 - 1 / g.shape[-1])
    if bend is not None:
        g, g_t = g * (1 - bend.square()), g_t * (1 - bend.gather(-1, t).square())
    # The target's entry is set last: p - 1 in half precision would lose what is left to learn of a sure token.
    return nll.squeeze(-1), g.to(logits_CV.dtype).scatter(-1, t, g_t.to(logits_CV.dtype))


def chunked_nll(
    weight: Float[Tensor, "V D"],
    hidden: Float[Tensor, "B T D"],
    targets: Int[Tensor, "B T"],
    mask: Float[Tensor, "B T"],
    softcap: float = 0.0,
    smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """`sum(mask * token_nll(...))`: the same value and first gradient, without keeping the logits.

    Works under torch.func.grad, vmap and torch.compile. The log-sum-exp is float32 whatever the products' dtype.

    Raises:
        RuntimeError: on double differentiation or forward mode, which would be wrong; take `token_nll` there.
            A second derivative inside `torch.compile` is wrong and not noticed.
    """
    rows = hidden.flatten(0, 1), targets.flatten(), mask.flatten()
    return _ChunkedNLL.apply(weight, *rows, softcap, smoothing)[0]


def next_token(apply: Apply, chunked: bool = True, smoothing: float = 0.0) -> Loss:
    """Lift `apply -> Loss`: mean negative log-likelihood of the counted next tokens, in nats.

    Args:
        chunked: through `chunked_nll`; False takes plain cross entropy (curvature, forward mode).
        smoothing: label smoothing; the loss is then no likelihood, while validation stays one.

    Example:
        >>> from slm_fn.nn import gpt
        >>> config = gpt.ModelConfig(vocab_size=64, dim=32, num_layers=1, ffn_dim=64)
        >>> loss = next_token(partial(gpt.apply, config))
        >>> value, aux = loss(gpt.init(config, 0), LMBatch(torch.zeros(1, 9, dtype=torch.long), torch.ones(1, 8)))
    """

    def loss(params: Params, batch: LMBatch) -> tuple[Tensor, Aux]:
        targets, weight = batch.tokens[:, 1:], batch.mask.sum()
        if chunked:
            head = partial(chunked_nll, targets=targets, mask=batch.mask, smoothing=smoothing)
            total, _ = apply(params, batch.tokens[:, :-1], head=head)
        else:
            head = partial(token_nll, targets=targets, smoothing=smoothing)
            nll, _ = apply(params, batch.tokens[:, :-1], head=head)
            total = (nll * batch.mask).sum()
        return mean_over(total, weight), {"weight": weight}

    return loss


def next_token_from_logits(apply: Apply) -> Loss:
    """The same loss for an apply without a head (`nn.module.from_module`): plain cross entropy over its logits."""

    def loss(params: Params, batch: LMBatch) -> tuple[Tensor, Aux]:
        logits, _ = apply(params, batch.tokens[:, :-1])
        nll = F.cross_entropy(logits.float().flatten(0, 1), batch.tokens[:, 1:].flatten(), reduction="none")
        weight = batch.mask.sum()
        return mean_over((nll * batch.mask.flatten()).sum(), weight), {"weight": weight}

    return loss


def sequence_logprob(apply: Apply, params: Params, batch: LMBatch) -> Float[Tensor, " B"]:
    """Log-probability of each row's counted tokens together, in nats."""
    head = partial(token_nll, targets=batch.tokens[:, 1:])
    nll, _ = apply(params, batch.tokens[:, :-1], head=head)
    return -(nll * batch.mask).sum(-1)
