"""Generation for scripts: prompts to new tokens, one prompt or many, as a loop over the engine.

Invariant: the i-th new token of a request depends on the request and i, not on the other requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from slm_fn.infer import engine as engines
from slm_fn.infer.batching.engine_state import ActiveSequence
from slm_fn.infer.batching.prefill import prefill_chunk
from slm_fn.infer.decoder import Decoder
from slm_fn.infer.engine import Engine, EngineConfig
from slm_fn.infer.request import Request, Token, check_request
from slm_fn.nn.cache import InPlaceKVCache


def generate(
    decoder: Decoder,
    request: Request,
    context: int,
) -> Iterator[int]:
    """Returns the new tokens one by one, including the stop token.

    It ends at a stop token, at `max_tokens`, or where the context is full. The reply to a
    constrained request that did not complete its grammar has no stop token.

    Args:
        decoder: the model.
        request: what to generate.
        context: the most tokens of prompt and reply.

    Raises:
        ValueError: before the first token: the prompt is empty or leaves no room, or a setting is
            out of range.
    """
    engine = _make_engine(decoder, max_batch=1, context=context)
    check_request(request, context)
    return _generate(engine, request)


def _generate(engine: Engine, request: Request) -> Iterator[int]:
    for token in run(engine, [request]):
        is_stop = token.id in request.stop_ids
        if token.id is not None and (not is_stop or token.finish == "stop"):
            yield token.id


def generate_batch(
    decoder: Decoder,
    requests: Sequence[Request],
    context: int,
    max_batch: int = 64,
) -> list[list[int]]:
    """Returns all new tokens of many requests, each as `generate` alone would return them.

    Args:
        decoder: the model.
        requests: what to generate.
        context: the most tokens of prompt and reply.
        max_batch: requests decoded at once; it limits the memory of the cache.

    Raises:
        ValueError: before anything is computed: a prompt is empty or leaves no room, or a setting
            is out of range.
    """
    for request in requests:
        check_request(request, context)
    num_slots = max(1, min(max_batch, len(requests)))
    engine = _make_engine(decoder, num_slots, context)
    replies: list[list[int]] = [[] for _ in requests]
    for token in run(engine, requests):
        if token.id is not None:
            replies[token.key].append(token.id)
    return replies


@torch.inference_mode()
def prefill(
    decoder: Decoder,
    request: Request,
    context: int,
) -> tuple[Float[Tensor, "1 V"], InPlaceKVCache]:
    """Computes a prompt as the engine does.

    Args:
        decoder: the model.
        request: its prompt is computed; its `max_tokens` decides the length of the cache.
        context: the most tokens of prompt and reply.

    Returns:
        The logits after the prompt (float32, on the CPU), and its cache.
    """
    engine = _make_engine(decoder, max_batch=1, context=context)
    max_length = min(context, len(request.prompt) + request.max_tokens)
    prompt_only = Request(request.prompt, num_shared=request.num_shared)
    state = engines.admit(engine, engines.init(engine, max_length), 0, prompt_only)
    completed: list[tuple[ActiveSequence, Tensor]] = []
    while not completed:
        state, completed = prefill_chunk(decoder, state, engine.config.prefill_chunk, context)
    sequence, logits = completed[0]
    slot = slice(sequence.slot, sequence.slot + 1)
    k = state.slots.k[:, slot]
    v = state.slots.v[:, slot]
    length = torch.tensor([sequence.num_filled], device=k.device)
    return logits, InPlaceKVCache(k, v, length)


def run(engine: Engine, requests: Sequence[Request]) -> Iterator[Token]:
    """Returns every new token of some requests as it is generated; its key is the request's index.

    A request is admitted as soon as another one has ended.

    Raises:
        ValueError: when a request is admitted that `check_request` rejects.
    """
    # Slots take memory, so they are only as long as the longest request.
    lengths = [len(request.prompt) + request.max_tokens for request in requests]
    state = engines.init(engine, max(lengths, default=1))
    num_admitted = 0
    while num_admitted < len(requests) or state.sequences:
        while num_admitted < len(requests) and len(state.sequences) < engine.config.max_batch:
            state = engines.admit(engine, state, num_admitted, requests[num_admitted])
            num_admitted += 1
        state, tokens = engines.step(engine, state)
        yield from tokens


def _make_engine(
    decoder: Decoder,
    max_batch: int,
    context: int,
) -> Engine:
    config = EngineConfig(max_batch=max_batch, context=context, prefix_cache_tokens=0)
    return engines.make(decoder, config)
