"""Requests with random prompts, and the replies that the model gives to them without a server.

Invariant: a request is a function of the model and a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slm_fn.bench.serve.clients import LoadRequest
from slm_fn.bench.serve.process import MODEL_NAME
from slm_fn.core.random import Key, fold_in
from slm_fn.pipeline.generation import generate
from slm_fn.pipeline.model_folder import Model
from slm_fn.text.messages import Message

CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"
SAMPLING_SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.9},
    {"temperature": 1.5, "min_p": 0.1},
)
SYSTEM_KEY: Key = 7
"""Draws the system message, which all conversations share: the server may cache it."""
MAX_NEW_TOKENS = 64


def make_chat_request(model: Model, key: Key) -> LoadRequest:
    """Returns a chat request of random words with the model's own reply to it.

    The key draws the conversation, the sampling settings, the seed and the number of new tokens.
    """
    messages = _random_messages(model, key)
    ids = generate.encode_chat(model, messages)
    settings = SAMPLING_SETTINGS[fold_in(key, "settings") % len(SAMPLING_SETTINGS)]
    seed = fold_in(key, "seed") % (1 << 31)
    most_new_tokens = max(min(MAX_NEW_TOKENS, model.config.context - len(ids) - 1), 1)
    max_tokens = 1 + fold_in(key, "tokens") % most_new_tokens
    request = generate.make_request(
        model,
        ids,
        generate.sampling_config(model, settings),
        seed,
        max_tokens,
        num_shared=generate.num_system_tokens(model, messages),
    )
    deltas = list(generate.stream_text(model, request))
    body = {
        "model": MODEL_NAME,
        "messages": [{"role": message.role, "content": message.content} for message in messages],
        "max_tokens": max_tokens,
        "seed": seed,
        **settings,
    }
    return LoadRequest(
        path=CHAT_PATH,
        body=body,
        expected_text="".join(delta.text for delta in deltas),
        expected_finish=deltas[-1].finish or "",
        expected_tokens=deltas[-1].num_tokens,
    )


def make_completion_request(
    model: Model, model_name: str, prompt_ids: Sequence[int], new_tokens: int
) -> LoadRequest:
    """Returns a greedy completion request that generates exactly `new_tokens` tokens.

    It forbids the tokens that end a reply, and names no expected reply.
    """
    body = {
        "model": model_name,
        "max_tokens": new_tokens,
        "temperature": 0.0,
        "logit_bias": {str(stop_id): -100 for stop_id in model.stop_ids},
        "prompt": list(prompt_ids),
    }
    return LoadRequest(COMPLETIONS_PATH, body)


def random_ids(model: Model, key: Key, num_ids: int) -> list[int]:
    """Returns random token ids, none of them a special token."""
    special_ids = set(model.tokenizer.special_tokens.values())
    plain_ids = [i for i in range(model.tokenizer.vocab_size) if i not in special_ids]
    return [plain_ids[fold_in(key, f"word {i}") % len(plain_ids)] for i in range(num_ids)]


def _random_messages(model: Model, key: Key) -> list[Message]:
    """Returns one user message, in half the cases after a system message."""
    context = model.config.context
    max_words = max(context // 8, 1)
    user_text = _random_text(model, key, 1 + fold_in(key, "length") % max_words)
    messages = [Message("user", user_text)]
    if key % 2:
        messages.insert(0, Message("system", _random_text(model, SYSTEM_KEY, context // 8)))
    # A text of n random tokens may encode to more than n: take a short one if it is too long.
    if len(generate.encode_chat(model, messages)) > context // 2:
        messages = [Message("user", user_text[:1])]
    return messages


def _random_text(model: Model, key: Key, num_tokens: int) -> str:
    return model.tokenizer.decode(random_ids(model, key, num_tokens)) or "?"
