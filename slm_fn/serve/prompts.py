"""Prompts and words to ids: what a tokenizer makes of a request, off the event loop, for it may take a while.

Invariant: what is wrong with a request is told before anything of it is queued.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

from slm_fn.infer.request import ContextOverflow, check_prompt
from slm_fn.pipeline import talk
from slm_fn.pipeline.model import Model
from slm_fn.serve.errors import ApiError, invalid
from slm_fn.serve.protocol import Order
from slm_fn.text.tokenizer import Tokenizer


def bad_words(model: Model, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """`talk.bad_words`.

    Raises:
        ApiError: 400: a word is empty, or cannot be written.
    """
    try:
        return talk.bad_words(model, words)
    except ValueError as error:
        raise invalid(str(error), "bad_words") from None


class Prompt(NamedTuple):
    """The ids to go on from; the first `shared` of them others begin with too."""

    ids: list[int]
    shared: int = 0


def chat_prompt(model: Model, messages: Sequence[Any], order: Order) -> Prompt:
    """The ids of a conversation that waits for its reply.

    Raises:
        ApiError: 400: no conversation, or longer than the context.
    """
    _check_length(model, [message.content for message in messages], "messages")
    try:
        ids = _fitting(model, talk.chat_ids(model, messages), order, "messages")
        return Prompt(ids, talk.shared(model, messages))
    except ValueError as error:
        raise invalid(str(error), "messages") from None


def text_prompts(model: Model, prompts: Sequence[str | list[int]], order: Order) -> list[Prompt]:
    """The ids of texts, and ids as they are.

    Raises:
        ApiError: 400: none at all, one that no token has, or more than the context holds.
    """
    out, size = [], model.tokenizer.vocab_size
    for prompt in prompts:
        _check_length(model, [prompt] if isinstance(prompt, str) else [], "prompt")
        try:
            ids = talk.text_ids(model, prompt) if isinstance(prompt, str) else prompt
        except ValueError as error:
            raise invalid(str(error), "prompt") from None
        if not ids or not all(0 <= token < size for token in ids):
            raise invalid(f"prompt: token ids go from 0 to {size - 1}, and there must be one", "prompt")
        out.append(Prompt(_fitting(model, ids, order, "prompt")))
    return out


@lru_cache(maxsize=8)
def longest(tokenizer: Tokenizer) -> int:
    """How many bytes the longest token stands for."""
    size = 1
    for token in range(tokenizer.vocab_size):
        with suppress(ValueError):  # a vocabulary may have holes
            size = max(size, len(tokenizer.token_bytes(token)))
    return size


def least(tokenizer: Tokenizer, texts: Sequence[str]) -> int:
    """As many tokens as texts have at least, known without looking for them: that may take seconds.

    Example:
        >>> from slm_fn.text import bpe
        >>> tokenizer = bpe.train(["hello hello"], 264)
        >>> longest(tokenizer), least(tokenizer, ["hello" * 4]) <= len(tokenizer.encode("hello" * 4))
        (3, True)
    """
    return max(len(texts), sum(map(len, texts)) // longest(tokenizer))


def _check_length(model: Model, texts: Sequence[str], param: str) -> None:
    """Refuse what cannot fit, before anybody spends seconds on its tokens."""
    num, context = least(model.tokenizer, texts), model.config.context
    if num >= context:
        message = f"This model's maximum context length is {context} tokens. However, you requested {num} or more"
        raise ApiError(400, f"{message} in the {param}.", "context_length_exceeded", param)


def _fitting(model: Model, ids: list[int], order: Order, param: str) -> list[int]:
    try:
        check_prompt(len(ids), model.config.context, order.max_tokens or 0)
    except ContextOverflow as error:
        raise ApiError(400, str(error), "context_length_exceeded", param) from None
    return ids
