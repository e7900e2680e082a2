"""Perplexity and bits per byte: every token of a text predicted once, with as much context as fits.

Invariant: each token is counted exactly once, whatever the context length and the stride.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from slm_fn.core.types import Apply, LMBatch, Params
from slm_fn.loss.lm import token_nll


class Likelihood(NamedTuple):
    """A summed negative log-likelihood and the number of tokens it was summed over."""

    nats: float
    tokens: int

    @property
    def loss_nats(self) -> float:
        """The mean negative log-likelihood, in nats per token."""
        return self.nats / max(1, self.tokens)


def bits_per_byte(nats: float, num_bytes: int | float) -> float:
    """Converts a sum of nats over a text to bits per UTF-8 byte: comparable between tokenizers.

    Example:
        >>> round(bits_per_byte(math.log(2) * 16, 8), 6)
        2.0
    """
    return nats / math.log(2) / num_bytes


def windows(
    num_tokens: int,
    context: int,
    stride: int,
) -> Iterator[tuple[int, int, int]]:
    """Yields (start, stop, first scored target) of windows that score every target once.

    Args:
        num_tokens: length of the text; targets are the tokens 1 to num_tokens - 1.
        context: the most tokens that a model reads at once.
        stride: how far each window moves.

    Example:
        >>> list(windows(10, context=4, stride=2))
        [(0, 5, 1), (2, 7, 5), (4, 9, 7), (5, 10, 9)]
    """
    first_scored = 1
    while first_scored < num_tokens:
        num_scored = context if first_scored == 1 else stride
        stop = min(num_tokens, first_scored + num_scored)
        yield max(0, stop - context - 1), stop, first_scored
        first_scored = stop


@torch.no_grad()
def likelihood(
    apply: Apply,
    params: Params,
    ids: Sequence[int],
    context: int,
    stride: int | None = None,
) -> Likelihood:
    """Returns the negative log-likelihood of a text.

    Args:
        apply: the model.
        params: its parameters.
        ids: the token ids; `ids[0]` (the document's start token) is a condition and not scored.
        context: the most tokens that the model reads at once.
        stride: how far the windows move, by default half the context. Each scored token has at
            least `context - stride` tokens before it, or all that there are.
    """
    if stride is None:
        stride = max(1, context // 2)
    all_tokens = torch.tensor(ids, device=params["norm"].device)
    total_nats = 0.0
    for start, stop, first_scored in windows(len(ids), context, stride):
        nll_BT = _predict(apply, params, all_tokens[None, start:stop])
        total_nats += nll_BT[0, first_scored - start - 1 :].sum().item()
    return Likelihood(total_nats, len(ids) - 1)


@torch.no_grad()
def batch_likelihood(
    apply: Apply,
    params: Params,
    batches: Iterable[LMBatch],
) -> Likelihood:
    """Returns the negative log-likelihood of the counted targets of some batches."""
    nats = 0.0
    num_tokens = 0
    for batch in batches:
        nll_BT = _predict(apply, params, batch.tokens)
        nats += (nll_BT * batch.mask).sum().item()
        num_tokens += int(batch.mask.sum())
    return Likelihood(nats, num_tokens)


def _predict(
    apply: Apply,
    params: Params,
    tokens: Int[Tensor, "B T1"],
) -> Float[Tensor, "B T"]:
    """Returns the negative log-likelihood of every token but the first of each row."""
    head = partial(token_nll, targets=tokens[:, 1:])
    nll_BT: Tensor
    nll_BT, _ = apply(params, tokens[:, :-1], head=head)
    return nll_BT
