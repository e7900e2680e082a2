"""Perplexity and bits per byte: every token of a text predicted once, with as much context as fits.

Invariant: each token is counted exactly once, whatever the window and the stride.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch

from slm_fn.core.types import Apply, LMBatch, Params
from slm_fn.loss.lm import token_nll


class Likelihood(NamedTuple):
    """Summed negative log-likelihood and what it was summed over."""

    nats: float
    tokens: int

    @property
    def loss_nats(self) -> float:
        """Nats per token."""
        return self.nats / max(1, self.tokens)


def bits_per_byte(nats: float, num_bytes: int | float) -> float:
    """A sum of nats over a text as bits per UTF-8 byte: comparable between tokenizers.

    Example:
        >>> round(bits_per_byte(math.log(2) * 16, 8), 6)
        2.0
    """
    return nats / math.log(2) / num_bytes


def windows(num_tokens: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, first scored target) of windows that together score targets 1 .. num_tokens - 1 once each.

    Example:
        >>> list(windows(10, context=4, stride=2))
        [(0, 5, 1), (2, 7, 5), (4, 9, 7), (5, 10, 9)]
    """
    scored = 1
    while scored < num_tokens:
        stop = min(num_tokens, scored + (context if scored == 1 else stride))
        yield max(0, stop - context - 1), stop, scored
        scored = stop


@torch.no_grad()
def likelihood(apply: Apply, params: Params, ids: Sequence[int], context: int, stride: int | None = None) -> Likelihood:
    """Negative log-likelihood of a whole text in nats. `ids[0]` is only a condition (the document's start token).

    Args:
        stride: how far windows move; each token has at least `context - stride` tokens before it. Half by default.
    """
    device = params["norm"].device
    every = torch.tensor(ids, device=device)
    total = 0.0
    for start, stop, scored in windows(len(ids), context, stride or max(1, context // 2)):
        tokens = every[None, start:stop]
        nll, _ = apply(params, tokens[:, :-1], head=partial(token_nll, targets=tokens[:, 1:]))
        total += nll[0, scored - start - 1 :].sum().item()
    return Likelihood(total, len(ids) - 1)


@torch.no_grad()
def batch_likelihood(apply: Apply, params: Params, batches: Iterator[LMBatch]) -> Likelihood:
    """Negative log-likelihood of the counted targets of some batches."""
    nats, tokens = 0.0, 0
    for batch in batches:
        nll, _ = apply(params, batch.tokens[:, :-1], head=partial(token_nll, targets=batch.tokens[:, 1:]))
        nats += (nll * batch.mask).sum().item()
        tokens += int(batch.mask.sum())
    return Likelihood(nats, tokens)
