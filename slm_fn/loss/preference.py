"""Preference losses: DPO (sigmoid) as a pure function of two parameter trees.

Invariant: at the reference itself the DPO loss is ln 2 exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from slm_fn.core.types import Apply, Aux, Loss, PairBatch, Params
from slm_fn.loss.lm import sequence_logprob

Reference = Callable[[PairBatch], Float[Tensor, "B 2"]]
"""Log-probabilities of chosen and rejected under the reference: computed now (`frozen`) or once before (`recorded`)."""


def pair_logprobs(apply: Apply, params: Params, batch: PairBatch) -> Float[Tensor, "B 2"]:
    """Log-probabilities of the chosen and the rejected reply of each row, in nats."""
    return torch.stack([sequence_logprob(apply, params, side) for side in (batch.chosen, batch.rejected)], -1)


def frozen(apply: Apply, params: Params) -> Reference:
    """The reference as a second tree that is not trained."""
    return lambda batch: pair_logprobs(apply, params, batch).detach()


def recorded(batch: PairBatch) -> Float[Tensor, "B 2"]:
    """The reference as numbers computed once and carried by the batch: no second model in memory."""
    return batch.reference


def dpo(reference: Reference, beta: float = 0.1, nll_weight: float = 0.0) -> Callable[[Apply], Loss]:
    """Lift `apply -> Loss`: `-log sigmoid(beta * (log pi/ref of chosen - log pi/ref of rejected))`, mean over pairs.

    Args:
        nll_weight: adds that much of the chosen replies' mean negative log-likelihood per token, which keeps their
            probability from sinking together with the rejected ones' (arXiv 2404.19733).

    Example:
        >>> step = pipe(dpo(frozen(apply, sft_params), beta=0.1), value_and_grad, ...)  # doctest: +SKIP

    References: arXiv 2305.18290.
    """

    def lift(apply: Apply) -> Loss:
        def loss(params: Params, batch: PairBatch) -> tuple[Tensor, Aux]:
            logp, ref = pair_logprobs(apply, params, batch), reference(batch)
            rewards = beta * (logp - ref)
            margin = rewards[:, 0] - rewards[:, 1]
            tokens = batch.chosen.mask.sum()
            value = -F.logsigmoid(margin).mean()
            if nll_weight:
                value = value - nll_weight * logp[:, 0].sum() / tokens
            return value, {
                "weight": torch.full_like(tokens, margin.shape[0]),
                "reward_accuracy": (margin > 0).float().mean(),
                "reward_margin": margin.mean(),
                "chosen_logp_change": (logp[:, 0] - ref[:, 0]).sum() / tokens,
                "rejected_logp_change": (logp[:, 1] - ref[:, 1]).sum() / batch.rejected.mask.sum(),
            }

        return loss

    return lift
