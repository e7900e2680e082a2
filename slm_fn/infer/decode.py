"""Decoding for scripts: prompts to new tokens, one at a time or many rows at once, as a loop over the engine.

Invariant: the i-th new token of a row depends on its prompt, its seed and i, not on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from slm_fn.core.types import Apply, Params
from slm_fn.infer import engine as engines
from slm_fn.infer.constrain import Constraint
from slm_fn.infer.engine import Engine, EngineConfig, InitCache
from slm_fn.infer.request import ContextOverflow, Request, Token, check_prompt, check_request
from slm_fn.infer.sample import SampleConfig
from slm_fn.nn.cache import Slots

__all__ = ["ContextOverflow", "InitCache", "check", "check_prompt", "generate", "generate_batch", "prefill", "run"]


def generate(
    apply: Apply,
    init_cache: InitCache,
    params: Params,
    prompt_ids: Sequence[int],
    *,
    config: SampleConfig,
    seed: int,
    max_tokens: int,
    stop_ids: Collection[int],
    size: int,
    constraint: Constraint | None = None,
    shared: int = 0,
) -> Iterator[int]:
    """New tokens one by one, the stopping one included; ends at `max_tokens` or where the context of `size` is full.

    Args:
        constraint: the form that the reply must have; one that came to no end has no stopping token.
        shared: as in `Request`, to read the prompt as a server does that knows its beginning.

    Raises:
        ValueError: the prompt leaves no room, or is empty.
    """
    engine = engines.make(apply, init_cache, params, EngineConfig(max_batch=1, size=size, prefix_tokens=0))
    stops = frozenset(stop_ids)
    request = Request(tuple(prompt_ids), config, seed, max_tokens, stops, constraint=constraint, shared=shared)
    check_request(request, size)
    tokens = ((token.id, token.finish) for token in run(engine, [request]))
    return (token for token, finish in tokens if token is not None and (token not in stops or finish == "stop"))


def generate_batch(
    apply: Apply,
    init_cache: InitCache,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    config: SampleConfig,
    seeds: Sequence[int],
    max_tokens: int,
    stop_ids: Collection[int],
    size: int,
    num_rows: int = 64,
) -> list[list[int]]:
    """All new tokens of many prompts, decoded together; each row as `generate` alone would make it.

    Args:
        num_rows: decoded at a time: bounds the cache.

    Raises:
        ValueError: some prompt leaves no room, or is empty; nothing has been computed then.
    """
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many seeds, got {len(seeds)}")
    rows = max(1, min(num_rows, len(prompts)))
    engine = engines.make(apply, init_cache, params, EngineConfig(max_batch=rows, size=size, prefix_tokens=0))
    stops = frozenset(stop_ids)
    asked = [
        Request(tuple(prompt), config, seed, max_tokens, stops) for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    for request in asked:
        check_request(request, size)
    out: list[list[int]] = [[] for _ in prompts]
    for token in run(engine, asked):
        if token.id is not None:
            out[token.key].append(token.id)
    return out


def check(prompts: Sequence[Sequence[int]], config: SampleConfig, max_tokens: int, size: int) -> None:
    """Refuse what cannot be decoded, before anything is computed.

    Raises:
        ValueError: an empty prompt, one that leaves no room, or a setting out of its range.
    """
    for prompt in prompts:
        check_request(Request(tuple(prompt), config, max_tokens=max_tokens), size)


@torch.inference_mode()
def prefill(
    apply: Apply, init_cache: InitCache, params: Params, prompt_ids: Sequence[int], size: int, room: int | None = None
) -> tuple[Float[Tensor, "1 V"], Slots]:
    """Read one prompt as the engine does: the logits behind its last token (float32, on the CPU), and its cache.

    Args:
        room: how many tokens the cache should hold; None is the context of `size`.
    """
    engine = engines.make(apply, init_cache, params, EngineConfig(max_batch=1, size=size, prefix_tokens=0))
    state = engines.admit(engine, engines.init(engine, room), 0, Request(tuple(prompt_ids)))
    state, ended = engines.read(engine, state)
    while not ended:
        state, ended = engines.read(engine, state)
    row, logits = ended[0]
    k, v = (x[:, row.slot : row.slot + 1] for x in (state.slots.k, state.slots.v))
    return logits, Slots(k, v, torch.tensor([row.filled], device=k.device))


def run(engine: Engine, requests: Sequence[Request]) -> Iterator[Token]:
    """Every new token of some requests as it comes, `key` being the request's place: the next joins when one ends.

    Raises:
        ValueError: a request that cannot be done, when its turn comes; `check` tells before.
    """
    # No more room than can be used: slots are memory.
    longest = max((len(request.prompt) + request.max_tokens for request in requests), default=1)
    state, joined = engines.init(engine, longest), 0
    while joined < len(requests) or state.rows:
        while joined < len(requests) and len(state.rows) < engine.config.max_batch:
            state = engines.admit(engine, state, joined, requests[joined])
            joined += 1
        state, tokens = engines.step(engine, state)
        yield from tokens
