"""Replies of a model to user messages, all decoded in one batch with the model's sampling defaults.

Invariant: each reply has its own seed, so it is the same whichever prompts are decoded beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from slm_fn.infer import generate
from slm_fn.infer.request import Request
from slm_fn.pipeline.model_folder import Model
from slm_fn.text import chat_template
from slm_fn.text.messages import Message


def reply_texts(
    model: Model, prompts: Sequence[str], max_tokens: int, seeds: Sequence[int] | None = None
) -> list[str]:
    """Returns one reply per prompt as text.

    Args:
        model: answers each prompt as a conversation of one user message.
        prompts: user messages.
        max_tokens: at most so many tokens per reply.
        seeds: one per prompt; by default its index.
    """
    replies = reply_ids(model, prompts, max_tokens, seeds)
    return [model.tokenizer.decode(ids) for ids in replies]


def reply_ids(
    model: Model, prompts: Sequence[str], max_tokens: int, seeds: Sequence[int] | None = None
) -> list[list[int]]:
    """Returns one reply per prompt as ids; the special token that ended a reply is its last id."""
    if seeds is None:
        seeds = range(len(prompts))
    requests = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        request = Request(
            prompt=tuple(_render_prompt(model, prompt)),
            sampling=model.generation.sampling,
            seed=seed,
            max_tokens=max_tokens,
            stop_ids=model.stop_ids,
        )
        requests.append(request)
    return generate.generate_batch(model.decoder, requests, model.config.context)


def _render_prompt(model: Model, prompt: str) -> list[int]:
    message = Message("user", prompt)
    template = model.generation.template
    return chat_template.render(
        template, model.tokenizer, [message], add_generation_prompt=True
    ).ids


def with_sampling(model: Model, **changes: Any) -> Model:
    """Returns the model with other sampling defaults.

    Args:
        model: whose defaults to change.
        changes: fields of `SampleConfig`, as `temperature=0.8`.
    """
    sampling = msgspec.structs.replace(model.generation.sampling, **changes)
    generation = msgspec.structs.replace(model.generation, sampling=sampling)
    return model._replace(generation=generation)
