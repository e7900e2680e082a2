"""What is asked of the engine and what it tells: requests, tokens, and which requests cannot be done.

Invariant: whoever checked a request will not see the engine refuse it, unless every slot is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from slm_fn.infer import sample
from slm_fn.infer.constrain import Constraint
from slm_fn.infer.sample import SampleConfig

Finish = Literal["stop", "length"]


class ContextOverflow(ValueError):
    """A prompt that leaves no room for an answer."""


class Request(NamedTuple):
    """What one row is to do.

    `logprobs` is how many alternatives are told per new token (None: not even its own logarithm); `prompt_logprobs`
    asks for the same of the prompt. The first `shared` tokens are those that other requests begin with too, as with a
    system prompt: they are read apart, and once.
    """

    prompt: tuple[int, ...]
    sampling: SampleConfig = SampleConfig()
    seed: int = 0
    max_tokens: int = 16
    stop_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    prompt_logprobs: bool = False
    constraint: Constraint | None = None
    shared: int = 0


class Logprob(NamedTuple):
    """The logarithm of a token's probability, and the likeliest ids with theirs, likeliest first."""

    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


class Prompt(NamedTuple):
    """What is told of a prompt with its first new token; `logprobs` (if asked for) start at its second token."""

    cached_tokens: int
    logprobs: tuple[Logprob, ...] = ()


class Token(NamedTuple):
    """A new token of the request `key`; `id` is None where none was asked for (`max_tokens=0`)."""

    key: int
    id: int | None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish: Finish | None = None
    prompt: Prompt | None = None


def check_prompt(num_prompt: int, size: int, max_tokens: int) -> None:
    """Refuse a prompt that leaves no room, before anything is computed.

    Raises:
        ContextOverflow: in the words that OpenAI's clients know.
    """
    if num_prompt >= size:
        raise ContextOverflow(
            f"This model's maximum context length is {size} tokens. However, you requested "
            f"{num_prompt + max_tokens} tokens ({num_prompt} in the messages, {max_tokens} in the completion). "
            "Please shorten the prompt."
        )


def check_request(request: Request, size: int, vocab_size: int | None = None) -> None:
    """Refuse what cannot be done in a context of `size`, before anything is computed.

    Raises:
        ContextOverflow: the prompt leaves no room.
        ValueError: an empty prompt, an id that the model does not know, or a setting out of its range.
    """
    if not request.prompt:
        raise ValueError("a prompt needs at least one token")
    if request.max_tokens < 0:
        raise ValueError(f"max_tokens must be at least 0, got {request.max_tokens}")
    if not 0 <= request.shared <= len(request.prompt):
        raise ValueError(f"shared must be from 0 to the prompt's {len(request.prompt)} tokens, got {request.shared}")
    check_prompt(len(request.prompt), size, request.max_tokens)
    for token in (min(request.prompt), max(request.prompt)):
        if token < 0 or (vocab_size is not None and token >= vocab_size):
            raise ValueError(f"the prompt has token {token}; the vocabulary has {vocab_size}")
    sample.check(request.sampling, vocab_size)


def tell(logits: Float[Tensor, "B V"], ids: Sequence[int], num_top: int) -> tuple[Logprob, ...]:
    """What the model thought of each of some ids, before any filter, and of the likeliest in its place.

    Example:
        >>> tell(torch.tensor([[0.0, 0.0]]), [1], 1)
        (Logprob(logprob=-0.6931471824645996, top=((0, -0.6931471824645996),)),)
    """
    found = sample.logprobs(logits, torch.tensor(ids, dtype=torch.long), num_top)
    tops = zip(found.ids.tolist(), found.values.tolist(), strict=True)
    own = found.chosen.tolist()
    return tuple(Logprob(one, tuple(zip(*top, strict=True))) for one, top in zip(own, tops, strict=True))
