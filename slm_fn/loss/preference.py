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
        nll_weight: adds that much of the chosen replies' negative log-likelihood per token, mean over pairs, which
            keeps their probability from sinking together with the rejected ones' (arXiv 2404.19733).

    All means are over pairs, whatever their lengths, so `accumulate` adds up to the whole batch.

    Example:
        >>> from functools import partial
        >>> from slm_fn.core.types import LMBatch
        >>> from slm_fn.nn import gpt
        >>> config = gpt.ModelConfig(vocab_size=64, dim=32, num_layers=1, ffn_dim=64)
        >>> apply, params = partial(gpt.apply, config), gpt.init(config, 0)
        >>> side = LMBatch(torch.zeros(1, 9, dtype=torch.long), torch.ones(1, 8))
        >>> value, aux = dpo(frozen(apply, params))(apply)(params, PairBatch(side, side, torch.zeros(1, 2)))
        >>> round(value.item(), 4)
        0.6931

    References: arXiv 2305.18290.
    """

    def lift(apply: Apply) -> Loss:
        def loss(params: Params, batch: PairBatch) -> tuple[Tensor, Aux]:
            logp, ref = pair_logprobs(apply, params, batch), reference(batch)
            rewards = beta * (logp - ref)
            margin = rewards[:, 0] - rewards[:, 1]
            lengths = torch.stack([side.mask.sum(-1) for side in (batch.chosen, batch.rejected)], -1).clamp(min=1)
            value = -F.logsigmoid(margin).mean()
            if nll_weight:
                value = value - nll_weight * (logp / lengths)[:, 0].mean()
            change = ((logp - ref) / lengths).mean(0)
            return value, {
                "weight": torch.full_like(value, margin.shape[0]),
                "tokens": batch.chosen.mask.sum() + batch.rejected.mask.sum(),
                "reward_accuracy": (margin > 0).float().mean(),
                "reward_margin": margin.mean(),
                "chosen_logp_change": change[0],
                "rejected_logp_change": change[1],
            }

        return loss

    return lift
