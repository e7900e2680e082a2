"""Text in, text out: continue a text or answer a conversation, streamed as text deltas.

Invariant: the terminal, `slm sample` and the server's tests generate by this one function; a delta
holds complete characters only, and nothing of a special token or a stop string.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from slm_fn.infer import constraints, detokenizer, generate
from slm_fn.infer.constraints import Constraint, Grammar
from slm_fn.infer.detokenizer import TextDelta
from slm_fn.infer.request import Request
from slm_fn.infer.sampling import SampleConfig
from slm_fn.pipeline.model_folder import Model
from slm_fn.text import chat_template
from slm_fn.text.messages import Message


def encode_text(model: Model, prompt: str) -> list[int]:
    """Token ids of a text to continue, with the token that begins every training document."""
    bos = model.tokenizer.special_id(model.generation.template.bos)
    return [bos, *model.tokenizer.encode(prompt)]


def encode_chat(model: Model, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation up to the assistant's reply, by the model's own chat template.

    Raises:
        ValueError: the messages are not a conversation that ends with the user's turn.
    """
    template = model.generation.template
    return chat_template.render(template, model.tokenizer, messages, add_generation_prompt=True).ids


def num_system_tokens(model: Model, messages: Sequence[Message]) -> int:
    """How many leading tokens come from the system message: other conversations share them."""
    if not messages or messages[0].role != "system":
        return 0
    template = model.generation.template
    return len(chat_template.render(template, model.tokenizer, messages[:1]).ids)


def sampling_config(model: Model, given: Mapping[str, Any]) -> SampleConfig:
    """The model's sampling defaults with some settings replaced."""
    return msgspec.structs.replace(model.generation.sampling, **given)


def compile_constraint(model: Model, grammar: Grammar) -> Constraint:
    """A grammar compiled against the model's vocabulary.

    Raises:
        ValueError: the grammar is invalid or uses an unsupported feature.
    """
    return constraints.compile(model.tokenizer, model.stop_ids, grammar)


def encode_bad_words(model: Model, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Token sequences of texts that must not be generated, each at a word start and after a space.

    A text that the model spells with other tokens than the tokenizer does is not caught.

    Raises:
        ValueError: a text is empty.
    """
    if "" in texts:
        raise ValueError("a bad word must not be empty")
    spellings: list[str] = []
    for text in texts:
        spellings += [text, f" {text}"]
    encoded = model.tokenizer.encode_batch(spellings)
    return tuple(dict.fromkeys(tuple(ids) for ids in encoded))


def make_request(
    model: Model,
    ids: Sequence[int],
    config: SampleConfig,
    seed: int,
    max_tokens: int | None = None,
    constraint: Constraint | None = None,
    num_shared: int = 0,
) -> Request:
    """Returns the request to continue a prompt with a model.

    Args:
        model: whose stop tokens and context apply.
        ids: the prompt's token ids.
        config: the sampling settings.
        seed: of the random numbers.
        max_tokens: None generates up to the end of the context.
        constraint: the grammar that the text follows; it is complete if the finish reason is
            `stop`.
        num_shared: leading prompt tokens that other prompts share: it decides where the prompt is
            split for the prefix cache, and with it the last bits of some sums.
    """
    num_left = max(model.config.context - len(ids), 1)
    return Request(
        prompt=tuple(ids),
        sampling=config,
        seed=seed,
        max_tokens=num_left if max_tokens is None else max_tokens,
        stop_ids=model.stop_ids,
        constraint=constraint,
        num_shared=num_shared,
    )


def stream_text(model: Model, request: Request, stops: Sequence[str] = ()) -> Iterator[TextDelta]:
    """Generate after a prompt, one text delta per token; the last delta holds the finish reason.

    Args:
        model: the model.
        request: what to generate; see `make_request`.
        stops: strings that end the text; they are not part of it.

    Raises:
        ValueError: before the first delta: the prompt does not fit the context, or a setting is out
            of range.
    """
    tokens = generate.generate(model.decoder, request, model.config.context)
    return detokenizer.stream_deltas(tokens, model.tokenizer.token_bytes, request.stop_ids, stops)


def truncate_messages(
    model: Model, messages: Sequence[Message], room: int
) -> tuple[list[Message], int]:
    """Drop the oldest turns until `room` tokens are left for a reply.

    The system message and the last message stay, whatever their lengths.

    Returns:
        The remaining messages, and how many turns (a user's message and its reply) were dropped.
    """
    remaining = list(messages)
    num_dropped = 0
    first = 1 if remaining and remaining[0].role == "system" else 0
    max_prompt = model.config.context - room
    while len(remaining) - first > 2 and len(encode_chat(model, remaining)) > max_prompt:
        del remaining[first : first + 2]
        num_dropped += 1
    return remaining, num_dropped
