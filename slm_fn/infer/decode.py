"""Decoding: prompts to new tokens, one at a time or many ragged rows at once, through the key/value cache.

Invariant: the i-th new token of a row depends on its prompt, its seed and i, not on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from slm_fn.core import random
from slm_fn.core.types import Apply, Params
from slm_fn.infer import sample
from slm_fn.infer.sample import SampleConfig

InitCache = Callable[[Params, int, int], Any]


def check_prompt(num_prompt: int, size: int, max_tokens: int) -> None:
    """Refuse a prompt that leaves no room, before anything is computed.

    Raises:
        ValueError: in the words that OpenAI's clients know.
    """
    if num_prompt >= size:
        raise ValueError(
            f"This model's maximum context length is {size} tokens. However, you requested "
            f"{num_prompt + max_tokens} tokens ({num_prompt} in the messages, {max_tokens} in the completion). Please shorten the prompt."
        )


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
) -> Iterator[int]:
    """New tokens one by one, the stopping one included; ends at `max_tokens` or where the context of `size` is full.

    Raises:
        ValueError: the prompt leaves no room, or is empty.
    """
    rows = stream_rows(
        apply,
        init_cache,
        params,
        [prompt_ids],
        config=config,
        seeds=[seed],
        max_tokens=max_tokens,
        stop_ids=stop_ids,
        size=size,
    )
    return (ids[0] for ids in rows if ids[0] is not None)


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
) -> list[list[int]]:
    """All new tokens of many prompts, decoded together; each row as `generate` alone would make it."""
    out: list[list[int]] = [[] for _ in prompts]
    for ids in stream_rows(
        apply,
        init_cache,
        params,
        prompts,
        config=config,
        seeds=seeds,
        max_tokens=max_tokens,
        stop_ids=stop_ids,
        size=size,
    ):
        for row, token in enumerate(ids):
            if token is not None:
                out[row].append(token)
    return out


def stream_rows(
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
) -> Iterator[list[int | None]]:
    """One new token per row at each step, None for rows that have stopped."""
    for prompt in prompts:
        if not prompt:
            raise ValueError("a prompt needs at least one token")
        check_prompt(len(prompt), size, max_tokens)
    sample.check(config)
    return _rows(apply, init_cache, params, prompts, config, seeds, max_tokens, stop_ids, size)


def _rows(
    apply: Apply,
    init_cache: InitCache,
    params: Params,
    prompts: Sequence[Sequence[int]],
    config: SampleConfig,
    seeds: Sequence[int],
    max_tokens: int,
    stop_ids: Collection[int],
    size: int,
) -> Iterator[list[int | None]]:
    lengths = [len(prompt) for prompt in prompts]
    with torch.inference_mode():
        logits, cache = prefill(apply, init_cache, params, prompts, size)
        seen = _mark(logits, prompts) if config.repetition_penalty != 1 else None
    active = [max_tokens > 0] * len(prompts)
    for i in range(max_tokens):
        if not any(active):
            return
        u = torch.cat([random.uniform(random.fold_in(seed, i), (1,)) for seed in seeds])
        with torch.inference_mode():
            chosen = sample.choose(sample.chain(config, seen)(logits.float()), u)
        ids = chosen.tolist()
        yield [token if on else None for token, on in zip(ids, active, strict=True)]
        active = [
            on and token not in stop_ids and length + i + 1 < size
            for on, token, length in zip(active, ids, lengths, strict=True)
        ]
        if any(active) and i + 1 < max_tokens:
            with torch.inference_mode():
                if seen is not None:
                    seen = seen.scatter(1, chosen[:, None], True)
                # A stopped row keeps its length, so it never runs out of the cache.
                on = torch.tensor(active, device=chosen.device)
                before = cache.length
                out, cache = apply(params, chosen[:, None], cache)
                cache = cache._replace(length=torch.where(on, cache.length, before))
                logits = out[:, -1]


def prefill(
    apply: Apply, init_cache: InitCache, params: Params, prompts: Sequence[Sequence[int]], size: int
) -> tuple[Tensor, Any]:
    """Read ragged prompts in one pass: the logits behind each row's last token, and the cache.

    Rows are padded on the right; each row's length is then set to its own, so what the padding wrote is hidden by the
    mask and overwritten by what comes.
    """
    cache = init_cache(params, len(prompts), size)
    device = cache.length.device
    longest = max(len(prompt) for prompt in prompts)
    tokens = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    logits, cache = apply(params, tokens, cache)
    return logits[torch.arange(len(prompts), device=device), lengths - 1], cache._replace(length=lengths)


def _mark(logits: Tensor, prompts: Sequence[Sequence[int]]) -> Tensor:
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        seen[row, torch.tensor(list(prompt), device=seen.device)] = True
    return seen
