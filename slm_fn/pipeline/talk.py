"""Text in, text out: continue a text, answer a conversation, as pieces that can be shown at once.

Invariant: a piece is whole characters, and no part of a control token or a stop string.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from slm_fn.infer import decode, stream
from slm_fn.pipeline.model import Model
from slm_fn.text import chat
from slm_fn.text.chat import Message


def continue_text(
    model: Model, prompt: str, settings: Mapping[str, Any], seed: int, max_tokens: int, stops: Sequence[str] = ()
) -> Iterator[str]:
    """Pieces of the text that follows a prompt; `settings` override the model's sampling defaults.

    Raises:
        ValueError: the prompt does not fit the context, or a setting is out of range.
    """
    ids = [model.tokenizer.special(model.generation.template.bos), *model.tokenizer.encode(prompt)]
    return write(model, ids, settings, seed, max_tokens, stops)


def answer(
    model: Model, messages: Sequence[Message], settings: Mapping[str, Any], seed: int, max_tokens: int
) -> Iterator[str]:
    """Pieces of the reply to a conversation that ends with the user's message."""
    ids = chat.render(model.generation.template, model.tokenizer, messages, reply=True).ids
    return write(model, ids, settings, seed, max_tokens)


def write(
    model: Model, ids: list[int], settings: Mapping[str, Any], seed: int, max_tokens: int, stops: Sequence[str] = ()
) -> Iterator[str]:
    """Pieces of what follows some ids; checks everything before the first piece."""
    tokens = decode.generate(
        model.apply,
        model.init_cache,
        model.params,
        ids,
        config=msgspec.structs.replace(model.generation.sampling, **settings),
        seed=seed,
        max_tokens=max_tokens,
        stop_ids=model.stop_ids,
        size=model.config.context,
    )
    pieces = stream.pieces(tokens, model.tokenizer.token_bytes, model.stop_ids, stops)
    return (piece.text for piece in pieces if piece.text)


def fit(model: Model, messages: Sequence[Message], room: int) -> tuple[list[Message], int]:
    """Drop the oldest turns until `room` tokens are left for a reply; returns the rest and how many turns went.

    The system message stays, and so does the last one, whatever its length.
    """
    kept, dropped = list(messages), 0
    first = 1 if kept and kept[0].role == "system" else 0
    while len(kept) - first > 2:
        used = len(chat.render(model.generation.template, model.tokenizer, kept, reply=True).ids)
        if used + room <= model.config.context:
            break
        del kept[first : first + 2]
        dropped += 1
    return kept, dropped
