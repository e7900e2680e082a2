"""Requests to the engine, the tokens it returns, and the checks of a request.

Invariant: the engine accepts a request that passed `check_request`, unless it is full.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from slm_fn.infer import sampling as samplers
from slm_fn.infer.constraints import Constraint
from slm_fn.infer.sampling import SampleConfig

Finish = Literal["stop", "length"]
"""The finish reason: a stop token or stop string, or the limit of tokens or of the context."""


class ContextOverflow(ValueError):
    """Raised for a prompt that leaves no room for a reply in the context."""


class Request(NamedTuple):
    """What to generate after one prompt.

    Attributes:
        prompt: token ids.
        sampling: how each token is chosen.
        seed: of the random numbers.
        max_tokens: the most new tokens.
        stop_ids: tokens that end the reply; the token is its last.
        logprobs: alternatives returned with the log probability of each new token; None returns
            neither.
        prompt_logprobs: whether the same is returned for the prompt's tokens.
        constraint: the grammar that the reply follows.
        num_shared: leading tokens that other prompts begin with too, such as a system message: they
            are prefilled separately, and once.
    """

    prompt: tuple[int, ...]
    sampling: SampleConfig = SampleConfig()
    seed: int = 0
    max_tokens: int = 16
    stop_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    prompt_logprobs: bool = False
    constraint: Constraint | None = None
    num_shared: int = 0


class Logprob(NamedTuple):
    """A token's log probability, and the most probable ids with theirs, in falling order."""

    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


class PromptResult(NamedTuple):
    """What is returned about a prompt with its first new token.

    Attributes:
        num_cached_tokens: tokens whose keys and values came from the prefix cache.
        logprobs: if requested, one for each token from the second one on.
    """

    num_cached_tokens: int
    logprobs: tuple[Logprob, ...] = ()


class Token(NamedTuple):
    """A new token of a request.

    Attributes:
        key: which request.
        id: None where no token was requested (`max_tokens=0`).
        logprob: if requested, its log probability.
        top: if requested, the most probable ids and their log probabilities.
        finish: the finish reason, in the last token only.
        prompt: about the prompt, in the first token only.
    """

    key: int
    id: int | None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish: Finish | None = None
    prompt: PromptResult | None = None


def check_prompt(
    num_prompt_tokens: int,
    context: int,
    max_tokens: int,
) -> None:
    """Rejects a prompt that leaves no room for a reply, before anything is computed.

    Raises:
        ContextOverflow: in the words that OpenAI's clients know.
    """
    if num_prompt_tokens < context:
        return
    num_requested = num_prompt_tokens + max_tokens
    raise ContextOverflow(
        f"This model's maximum context length is {context} tokens. "
        f"However, you requested {num_requested} tokens "
        f"({num_prompt_tokens} in the messages, {max_tokens} in the completion). "
        "Please shorten the prompt."
    )


def check_request(
    request: Request,
    context: int,
    vocab_size: int | None = None,
) -> None:
    """Rejects a request that cannot be generated, before anything is computed.

    Args:
        request: what to generate.
        context: the most tokens of prompt and reply.
        vocab_size: of the model; None skips the checks of token ids against it.

    Raises:
        ContextOverflow: the prompt leaves no room.
        ValueError: an empty prompt, an id outside the vocabulary, or a setting out of range.
    """
    num_prompt_tokens = len(request.prompt)
    if not request.prompt:
        raise ValueError("a prompt needs at least one token")
    if request.max_tokens < 0:
        raise ValueError(f"max_tokens must be at least 0, got {request.max_tokens}")
    if not 0 <= request.num_shared <= num_prompt_tokens:
        raise ValueError(
            f"num_shared must be from 0 to the prompt's {num_prompt_tokens} tokens, "
            f"got {request.num_shared}"
        )
    check_prompt(num_prompt_tokens, context, request.max_tokens)
    for token in (min(request.prompt), max(request.prompt)):
        if token < 0 or (vocab_size is not None and token >= vocab_size):
            raise ValueError(f"the prompt has token {token}; the vocabulary has {vocab_size}")
    samplers.check(request.sampling, vocab_size)


def token_logprobs(
    logits: Float[Tensor, "B V"],
    ids: Sequence[int],
    num_top: int,
) -> tuple[Logprob, ...]:
    """Returns the log probability of one id per row, before any filter, and the most probable ids.

    Args:
        logits: of the model.
        ids: one per row.
        num_top: how many of the most probable ids.

    Example:
        >>> token_logprobs(torch.tensor([[0.0, 0.0]]), [1], 1)
        (Logprob(logprob=-0.6931471824645996, top=((0, -0.6931471824645996),)),)
    """
    chosen = torch.tensor(ids, dtype=torch.long)
    batch = samplers.logprobs(logits, chosen, num_top)
    top_ids = batch.top_ids.tolist()
    top_values = batch.top_values.tolist()
    result = []
    for row, logprob in enumerate(batch.chosen.tolist()):
        top = tuple(zip(top_ids[row], top_values[row], strict=True))
        result.append(Logprob(logprob, top))
    return tuple(result)
