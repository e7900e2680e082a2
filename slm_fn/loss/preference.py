"""Preference losses: DPO as a pure function of the policy's and the reference's log-probabilities.

Invariant: a policy equal to the reference has a DPO loss of exactly ln 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from slm_fn.core.types import Apply, Aux, Loss, Objective, PairBatch, Params
from slm_fn.loss.lm import sequence_logprob

Reference: TypeAlias = Callable[[PairBatch], Float[Tensor, "B 2"]]
"""Log-probabilities of chosen and rejected replies under the reference model, in nats.

Computed for each batch by a second model, or once before training (`reference_from_batch`).
"""


def pair_logprobs(
    apply: Apply,
    params: Params,
    batch: PairBatch,
) -> Float[Tensor, "B 2"]:
    """Returns the log-probabilities of the chosen and the rejected reply of each row, in nats."""
    chosen = sequence_logprob(apply, params, batch.chosen)
    rejected = sequence_logprob(apply, params, batch.rejected)
    return torch.stack([chosen, rejected], -1)


def reference_from_batch(batch: PairBatch) -> Float[Tensor, "B 2"]:
    """Returns the reference log-probabilities that the batch carries: no second model in memory."""
    return batch.reference


def dpo(
    reference: Reference,
    beta: float = 0.1,
    nll_weight: float = 0.0,
) -> Objective:
    """Lifts `apply -> Loss`: direct preference optimisation, averaged over pairs.

    The loss of a pair is `-log sigmoid(beta * (log pi/ref of chosen - log pi/ref of rejected))`.
    All means are over pairs, whatever their lengths, so `accumulate` adds up to the full batch.

    Args:
        reference: gives the log-probabilities of the reference model.
        beta: the strength with which the policy is held to the reference.
        nll_weight: adds this multiple of the chosen replies' negative log-likelihood per token,
            averaged over pairs. It keeps their probability from sinking together with that of the
            rejected replies (arXiv 2404.19733).

    Returns:
        An objective of `PairBatch`es. aux holds `weight` (pairs), `tokens`, `reward_accuracy`,
        `reward_margin`, and the mean change of the log-probability per token of both sides.

    Example:
        >>> from functools import partial
        >>> from slm_fn.core.types import LMBatch
        >>> from slm_fn.nn import gpt
        >>> config = gpt.ModelConfig(vocab_size=64, dim=32, num_layers=1, ffn_dim=64)
        >>> apply, params = partial(gpt.apply, config), gpt.init(config, 0)
        >>> side = LMBatch(torch.zeros(1, 9, dtype=torch.long), torch.ones(1, 8))
        >>> pairs = PairBatch(side, side, torch.zeros(1, 2))
        >>> pairs = pairs._replace(reference=pair_logprobs(apply, params, pairs))
        >>> value, aux = dpo(reference_from_batch)(apply)(params, pairs)
        >>> round(value.item(), 4)
        0.6931

    References: arXiv 2305.18290.
    """

    def lift(apply: Apply) -> Loss:
        def loss(params: Params, batch: PairBatch) -> tuple[Tensor, Aux]:
            logp_B2 = pair_logprobs(apply, params, batch)
            change_B2 = logp_B2 - reference(batch)
            rewards_B2 = beta * change_B2
            margin_B = rewards_B2[:, 0] - rewards_B2[:, 1]
            lengths_B2 = _num_tokens(batch).clamp(min=1)
            value = -F.logsigmoid(margin_B).mean()
            if nll_weight:
                value = value - nll_weight * (logp_B2 / lengths_B2)[:, 0].mean()
            mean_change = (change_B2 / lengths_B2).mean(0)
            return value, {
                "weight": torch.full_like(value, margin_B.shape[0]),
                "tokens": batch.chosen.mask.sum() + batch.rejected.mask.sum(),
                "reward_accuracy": (margin_B > 0).float().mean(),
                "reward_margin": margin_B.mean(),
                "chosen_logp_change": mean_change[0],
                "rejected_logp_change": mean_change[1],
            }

        return loss

    return lift


def _num_tokens(batch: PairBatch) -> Float[Tensor, "B 2"]:
    """Returns the number of counted tokens of both sides of each pair."""
    chosen = batch.chosen.mask.sum(-1)
    rejected = batch.rejected.mask.sum(-1)
    return torch.stack([chosen, rejected], -1)
