"""Preference accuracy by implicit reward: how often a policy raised the given reply more than another one.

Invariant: a policy equal to its reference has reward zero everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from slm_fn.core.types import Apply, PairBatch, Params
from slm_fn.loss.preference import pair_logprobs, recorded


class Preference(NamedTuple):
    """Share of pairs whose chosen reply gained more (ties count half), and the mean change of its log-probability."""

    accuracy: float
    chosen_change_nats_per_token: float
    pairs: int


@torch.no_grad()
def preference(apply: Apply, params: Params, batches: Iterable[PairBatch]) -> Preference:
    """Judge a policy against the reference log-probabilities that the batches carry.

    The implicit reward of a reply is `log pi(reply) - log ref(reply)` up to the factor beta (arXiv 2305.18290).
    """
    won, pairs, change, tokens = 0.0, 0, 0.0, 0.0
    for batch in batches:
        reward = pair_logprobs(apply, params, batch) - recorded(batch)
        margin = reward[:, 0] - reward[:, 1]
        won += float((margin > 0).float().sum() + 0.5 * (margin == 0).float().sum())
        pairs += margin.shape[0]
        change += float(reward[:, 0].sum())
        tokens += float(batch.chosen.mask.sum())
    return Preference(won / max(1, pairs), change / max(1.0, tokens), pairs)
