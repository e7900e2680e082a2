"""Speculative decoding: cheap draft tokens, verified in one forward pass of the model.

Invariant: the new tokens have the distribution of plain sampling, whatever the draft. With a
deterministic draft (n-grams) and with greedy sampling they are the very tokens that
`generate.generate` returns for the seed: bit for bit if the decoder is batch-invariant, else unless
two tokens are within rounding of each other, since PyTorch rounds several tokens computed at once
differently from one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from slm_fn.core import random
from slm_fn.core.random import Key
from slm_fn.infer import generate as plain
from slm_fn.infer.decoder import Decoder
from slm_fn.infer.drafters import (
    Draft,
    Drafter,
    TargetDistribution,
    common_length,
    forward,
    sample_token,
    target_of,
)
from slm_fn.infer.filters import TokenHistory
from slm_fn.infer.request import Request, check_request


class SpeculationStats(NamedTuple):
    """Counts of speculative decoding.

    Attributes:
        passes: forward passes of the model.
        drafted: draft tokens.
        accepted: draft tokens that were accepted.
        tokens: new tokens.
    """

    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    tokens: int = 0

    @property
    def acceptance(self) -> float:
        """The share of draft tokens that were accepted; 0 if there were none."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """New tokens per forward pass; plain decoding has 1."""
        return self.tokens / self.passes if self.passes else 0.0

    def add_pass(
        self,
        drafted: int,
        accepted: int,
        tokens: int,
    ) -> SpeculationStats:
        """Returns the counts with one more forward pass."""
        return SpeculationStats(
            passes=self.passes + 1,
            drafted=self.drafted + drafted,
            accepted=self.accepted + accepted,
            tokens=self.tokens + tokens,
        )


def accept(
    logits: Float[Tensor, "1 V"],
    draft_id: int,
    draft_probs: Float[Tensor, " V"],
    key: Key,
) -> int:
    """Returns a token with the distribution of `logits`: the draft token as often as possible.

    A draft token d sampled from q is accepted with probability min(1, p(d) / q(d)); otherwise the
    token is sampled from max(p - q, 0). For a deterministic draft that amounts to sampling from p
    and comparing with the draft token, as `verify` does.

    Args:
        logits: of the target distribution p.
        draft_id: the draft token d.
        draft_probs: the distribution q that it was sampled from.
        key: of the random numbers.

    References: arXiv 2211.17192, 2302.01318.

    Example:
        >>> certain = torch.tensor([[0.0, float("-inf")]])
        >>> accept(certain, 1, torch.tensor([0.1, 0.9]).double(), key=0)
        0
    """
    p = logits[0].double().softmax(-1)
    q = draft_probs
    uniform = random.uniform(random.fold_in(key, "accept"), (1,)).double()
    if bool(uniform * q[draft_id] < p[draft_id]):
        return draft_id
    return sample_token((p - q).clamp(min=0).log()[None], key)


def verify(
    logits: Float[Tensor, "T V"],
    draft: Draft,
    target: TargetDistribution,
    history: TokenHistory,
    keys: Sequence[Key],
) -> list[int]:
    """Returns the accepted draft tokens and one more token.

    Args:
        logits: after the last token of the history, and after each draft token.
        draft: the draft tokens.
        target: the target distribution.
        history: the tokens before the draft.
        keys: one per row of `logits`.
    """
    tokens: list[int] = []
    for i, draft_id in enumerate(draft.ids):
        row = logits[i : i + 1]
        before = history._replace(reply=(*history.reply, *tokens))
        if draft.probs is None:
            token = target.sample(row, before, keys[i])
        else:
            token = accept(target.logits(row, before), draft_id, draft.probs[i], keys[i])
        tokens.append(token)
        if token != draft_id:
            return tokens
    before = history._replace(reply=(*history.reply, *tokens))
    return [*tokens, target.sample(logits[-1:], before, keys[-1])]


OnPass = Callable[[SpeculationStats], object]
"""Receives the counts after every forward pass."""


def ignore_stats(stats: SpeculationStats) -> None:
    """Does nothing."""
    del stats


def generate(
    decoder: Decoder,
    drafter: Drafter,
    request: Request,
    context: int,
    on_pass: OnPass = ignore_stats,
) -> Iterator[int]:
    """Returns what `generate.generate` returns, several tokens per pass where drafts are accepted.

    Args:
        decoder: the model.
        drafter: the source of draft tokens.
        request: what to generate, without a constraint.
        context: the most tokens of prompt and reply.
        on_pass: called after every forward pass with the counts so far.

    Raises:
        ValueError: before the first token: the prompt is empty or leaves no room, a setting is out
            of range, or the request has a constraint.
    """
    check_request(request, context)
    if request.constraint is not None:
        raise ValueError("speculative decoding does not support constraints")
    return _generate(decoder, drafter, request, context, on_pass)


def _generate(
    decoder: Decoder,
    drafter: Drafter,
    request: Request,
    context: int,
    on_pass: OnPass,
) -> Iterator[int]:
    # The inference mode is entered pass by pass: a generator must not leave it on for its caller.
    max_length = min(context, len(request.prompt) + request.max_tokens)
    if max_length == len(request.prompt):
        return
    target = target_of(request.sampling)
    state = drafter.init()
    draft = Draft()
    stats = SpeculationStats()
    history = TokenHistory(request.prompt, ())
    logits, kv_cache = plain.prefill(decoder, request, context)
    while True:
        keys = _keys(request.seed, history, len(draft.ids) + 1)
        with torch.inference_mode():
            verified = verify(logits, draft, target, history, keys)
        tokens = _up_to_stop(verified, request.stop_ids)
        num_accepted = common_length(verified, draft.ids)
        stats = stats.add_pass(len(draft.ids), num_accepted, len(tokens))
        on_pass(stats)
        yield from tokens
        history = history._replace(reply=(*history.reply, *tokens))
        length = len(request.prompt) + len(history.reply)
        if tokens[-1] in request.stop_ids or length == max_length:
            return
        # A pass generates one token more than it accepts.
        num_draft = min(drafter.num_draft, max_length - length - 1)
        draft = Draft()
        with torch.inference_mode():
            if num_draft:
                keys = _keys(request.seed, history, num_draft)
                state, draft = drafter.propose(state, history, target, keys)
            ids = [tokens[-1], *draft.ids]
            logits, kv_cache = forward(decoder, ids, kv_cache, length - 1, context)


def _up_to_stop(tokens: list[int], stop_ids: frozenset[int]) -> list[int]:
    for i, token in enumerate(tokens):
        if token in stop_ids:
            return tokens[: i + 1]
    return tokens


def _keys(
    seed: int,
    history: TokenHistory,
    num: int,
) -> list[Key]:
    """The keys of the next tokens, which are those of plain decoding."""
    first = len(history.reply)
    return [random.fold_in(seed, first + i) for i in range(num)]
