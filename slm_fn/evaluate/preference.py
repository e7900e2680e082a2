"""Preference accuracy by implicit reward: how often a policy favours the chosen reply more.

Invariant: a policy equal to its reference has reward zero everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from slm_fn.core.types import Apply, PairBatch, Params
from slm_fn.loss.preference import pair_logprobs, reference_from_batch


class PreferenceReport(NamedTuple):
    """Preference accuracy of a policy on a set of pairs.

    `accuracy` is the share of pairs whose chosen reply has the larger reward; ties count half.
    """

    accuracy: float
    chosen_change_nats_per_token: float
    num_pairs: int


@torch.no_grad()
def evaluate_preference(
    apply: Apply,
    params: Params,
    batches: Iterable[PairBatch],
) -> PreferenceReport:
    """Compares a policy with the reference log-probabilities that the batches carry.

    The implicit reward of a reply is `log pi(reply) - log ref(reply)`, up to the factor beta.

    Returns:
        The accuracy, and the mean change of the chosen replies' log-probability per token.

    References: arXiv 2305.18290.
    """
    num_correct = 0.0
    num_pairs = 0
    total_change = 0.0
    num_tokens = 0.0
    for batch in batches:
        reward_B2 = pair_logprobs(apply, params, batch) - reference_from_batch(batch)
        margin_B = reward_B2[:, 0] - reward_B2[:, 1]
        num_correct += float((margin_B > 0).float().sum() + 0.5 * (margin_B == 0).float().sum())
        num_pairs += margin_B.shape[0]
        total_change += float(reward_B2[:, 0].sum())
        num_tokens += float(batch.chosen.mask.sum())
    return PreferenceReport(
        accuracy=num_correct / max(1, num_pairs),
        chosen_change_nats_per_token=total_change / max(1.0, num_tokens),
        num_pairs=num_pairs,
    )
