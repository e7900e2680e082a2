"""The prompts of a request: messages and texts, checked and converted to token ids.

Tokenizing may take seconds for long texts, so these functions run off the event loop.

Invariant: every error in a prompt is raised before any part of the request is queued.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple, cast

from slm_fn.infer.request import ContextOverflow, check_prompt
from slm_fn.pipeline.generation import generate
from slm_fn.pipeline.model_folder import Model
from slm_fn.serve.protocol.errors import ApiError, invalid_request
from slm_fn.serve.protocol.params import GenerationParams
from slm_fn.serve.protocol.requests import ChatMessageParam
from slm_fn.text.messages import Message, Role
from slm_fn.text.tokenizer import Tokenizer


class TokenizedPrompt(NamedTuple):
    """The token ids of a prompt; other prompts are expected to begin with the same `num_shared`."""

    ids: list[int]
    num_shared: int = 0


def parse_messages(messages: Sequence[ChatMessageParam]) -> list[Message]:
    """Returns the messages as the chat template takes them.

    Raises:
        ApiError: 400 for content that is not text.
    """
    return [Message(_parse_role(message.role), _parse_content(message)) for message in messages]


def _parse_role(role: str) -> Role:
    # The chat template rejects unknown roles, with the number of the message.
    return cast(Role, "system" if role == "developer" else role)


def _parse_content(message: ChatMessageParam) -> str:
    content = message.content
    if not isinstance(content, list):
        return content or ""
    for part in content:
        if part.type != "text":
            raise invalid_request(
                f"content parts of type {part.type!r} are not supported; send text", "messages"
            )
    return "".join(part.text for part in content)


def parse_prompts(prompt: str | list[Any]) -> list[str | list[int]]:
    """Returns a list of prompts, each a text or token ids.

    Raises:
        ApiError: 400 for anything else.

    Example:
        >>> parse_prompts("a"), parse_prompts([1, 2])
        (['a'], [[1, 2]])
        >>> parse_prompts(["a", "b"]), parse_prompts([[1], [2]])
        (['a', 'b'], [[1], [2]])
    """
    is_single = isinstance(prompt, str) or (bool(prompt) and _is_token_ids(prompt))
    prompts = [prompt] if is_single else list(prompt)
    for each in prompts:
        if not isinstance(each, str) and not _is_token_ids(each):
            message = "prompt must be a string, a list of token ids, or a list of either"
            raise invalid_request(message, "prompt")
    if not prompts:
        raise invalid_request("prompt is empty", "prompt")
    return prompts


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def tokenize_bad_words(model: Model, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Returns the token sequences that the reply must not contain: see `generate.encode_bad_words`.

    Raises:
        ApiError: 400: a word is empty, or cannot be encoded.
    """
    try:
        return generate.encode_bad_words(model, words)
    except ValueError as error:
        raise invalid_request(str(error), "bad_words") from None


def tokenize_chat(
    model: Model, messages: Sequence[Message], params: GenerationParams
) -> TokenizedPrompt:
    """Returns the token ids of a conversation up to the reply; its system message is shared.

    Raises:
        ApiError: 400: not a valid conversation, or longer than the context.
    """
    _check_min_length(model, [message.content for message in messages], "messages")
    try:
        ids = generate.encode_chat(model, messages)
        _check_fits(model, ids, params, "messages")
        return TokenizedPrompt(ids, generate.num_system_tokens(model, messages))
    except ValueError as error:
        raise invalid_request(str(error), "messages") from None


def tokenize_prompts(
    model: Model, prompts: Sequence[str | list[int]], params: GenerationParams
) -> list[TokenizedPrompt]:
    """Returns the token ids of the prompts of a completion; prompts that are ids stay as they are.

    Raises:
        ApiError: 400: an empty prompt, an id outside the vocabulary, or too many tokens.
    """
    vocab_size = model.tokenizer.vocab_size
    tokenized = []
    for prompt in prompts:
        ids = _tokenize_text(model, prompt) if isinstance(prompt, str) else prompt
        if not ids or not all(0 <= token < vocab_size for token in ids):
            message = f"prompt must have at least one token id, each from 0 to {vocab_size - 1}"
            raise invalid_request(message, "prompt")
        _check_fits(model, ids, params, "prompt")
        tokenized.append(TokenizedPrompt(ids))
    return tokenized


def _tokenize_text(model: Model, text: str) -> list[int]:
    _check_min_length(model, [text], "prompt")
    try:
        return generate.encode_text(model, text)
    except ValueError as error:
        raise invalid_request(str(error), "prompt") from None


@lru_cache(maxsize=8)
def max_token_bytes(tokenizer: Tokenizer) -> int:
    """Returns the number of bytes of the longest token."""
    longest = 1
    for token in range(tokenizer.vocab_size):
        with suppress(ValueError):  # not every id of a vocabulary needs to be a token
            longest = max(longest, len(tokenizer.token_bytes(token)))
    return longest


def min_num_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> int:
    """Returns a lower bound of the number of tokens of texts, without tokenizing them.

    Example:
        >>> from slm_fn.text.training import bpe
        >>> tokenizer = bpe.train(["hello hello"], 264)
        >>> text = "hello" * 4
        >>> max_token_bytes(tokenizer)
        3
        >>> min_num_tokens(tokenizer, [text]) <= len(tokenizer.encode(text))
        True
    """
    num_characters = sum(map(len, texts))
    return max(len(texts), num_characters // max_token_bytes(tokenizer))


def _check_min_length(model: Model, texts: Sequence[str], param: str) -> None:
    """Rejects texts that cannot fit before seconds are spent on tokenizing them."""
    num_tokens = min_num_tokens(model.tokenizer, texts)
    context = model.config.context
    if num_tokens >= context:
        limit = f"This model's maximum context length is {context} tokens."
        requested = f"However, you requested {num_tokens} or more in the {param}."
        raise ApiError(400, f"{limit} {requested}", "context_length_exceeded", param)


def _check_fits(model: Model, ids: Sequence[int], params: GenerationParams, param: str) -> None:
    try:
        check_prompt(len(ids), model.config.context, params.max_tokens or 0)
    except ContextOverflow as error:
        raise ApiError(400, str(error), "context_length_exceeded", param) from None
