"""Text in, text out: continue a text, answer a conversation, as pieces that can be shown at once.

Invariant: the terminal, the server and sampling write by this one function; a piece is whole characters, and no part
of a control token or a stop string.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from slm_fn.infer import constrain, decode, stream
from slm_fn.infer.constrain import Constraint, Grammar
from slm_fn.infer.sample import SampleConfig
from slm_fn.infer.stream import Piece
from slm_fn.pipeline.model import Model
from slm_fn.text import chat
from slm_fn.text.chat import Message


def text_ids(model: Model, prompt: str) -> list[int]:
    """A text to continue, as the model saw texts begin."""
    return [model.tokenizer.special(model.generation.template.bos), *model.tokenizer.encode(prompt)]


def chat_ids(model: Model, messages: Sequence[Message]) -> list[int]:
    """A conversation that waits for the model's reply, by the template it was trained with.

    Raises:
        ValueError: the messages are no conversation that ends with the user's.
    """
    return chat.render(model.generation.template, model.tokenizer, messages, reply=True).ids


def shared(model: Model, messages: Sequence[Message]) -> int:
    """How many ids of such a conversation others begin with too: those of its system message."""
    first = [message for message in messages[:1] if message.role == "system"]
    return len(chat.render(model.generation.template, model.tokenizer, first).ids) if first else 0


def sampling(model: Model, given: Mapping[str, Any]) -> SampleConfig:
    """The model's sampling defaults with some settings replaced."""
    return msgspec.structs.replace(model.generation.sampling, **given)


def constraint(model: Model, grammar: Grammar) -> Constraint:
    """A form that the model's replies must have, checked.

    Raises:
        ValueError: the form is wrong, or has what is not supported.
    """
    return constrain.compile(model.tokenizer, model.stop_ids, grammar)


def bad_words(model: Model, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Texts that must not be said as sequences of ids, each at a beginning and behind a space.

    What the model spells with other tokens than the tokenizer would is not caught.

    Raises:
        ValueError: a text is empty.
    """
    if "" in texts:
        raise ValueError("a bad word must not be empty")
    ways = (form for text in texts for form in (text, f" {text}"))
    return tuple(dict.fromkeys(tuple(ids) for ids in model.tokenizer.encode_batch(list(ways))))


def write(
    model: Model,
    ids: Sequence[int],
    config: SampleConfig,
    seed: int,
    max_tokens: int | None = None,
    stops: Sequence[str] = (),
    constraint: Constraint | None = None,
    shared: int = 0,
) -> Iterator[Piece]:
    """What the model writes behind some ids, a piece per token; the last piece says why it ended.

    Args:
        max_tokens: None goes on to the end of the context.
        constraint: the form that the text must have; it has it if the last piece says `stop`.
        shared: as in `engine.Request`: nothing but the last bits of some sums may depend on it.

    Raises:
        ValueError: before the first piece: the ids do not fit the context, or a setting is out of its range.
    """
    size = model.config.context
    tokens = decode.generate(
        model.apply,
        model.init_cache,
        model.params,
        ids,
        config=config,
        seed=seed,
        max_tokens=max(size - len(ids), 1) if max_tokens is None else max_tokens,
        stop_ids=model.stop_ids,
        size=size,
        constraint=constraint,
        shared=shared,
    )
    return stream.pieces(tokens, model.tokenizer.token_bytes, model.stop_ids, stops)


def fit(model: Model, messages: Sequence[Message], room: int) -> tuple[list[Message], int]:
    """Drop the oldest turns until `room` tokens are left for a reply; returns the rest and how many turns went.

    The system message stays, and so does the last one, whatever its length.
    """
    kept, dropped = list(messages), 0
    first = 1 if kept and kept[0].role == "system" else 0
    while len(kept) - first > 2 and len(chat_ids(model, kept)) + room > model.config.context:
        del kept[first : first + 2]
        dropped += 1
    return kept, dropped
