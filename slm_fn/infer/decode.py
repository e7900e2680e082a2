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
from slm_fn.infer.filters import Said
from slm_fn.infer.sample import SampleConfig
from slm_fn.nn import cache as kv

InitCache = Callable[[Params, int, int], Any]


class ContextOverflow(ValueError):
    """A prompt that leaves no room for an answer."""


def check_prompt(num_prompt: int, size: int, max_tokens: int) -> None:
    """Refuse a prompt that leaves no room, before anything is computed.

    Raises:
        ContextOverflow: in the words that OpenAI's clients know.
    """
    if num_prompt >= size:
        raise ContextOverflow(
            f"This model's maximum context length is {size} tokens. However, you requested "
            f"{num_prompt + max_tokens} tokens ({num_prompt} in the messages, {max_tokens} in the completion). "
            "Please shorten the prompt."
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
    check([prompt_ids], config, max_tokens, size)
    rows = stream_rows(apply, init_cache, params, [prompt_ids], config, [seed], max_tokens, stop_ids, size)
    return (token for ids in rows for token in ids if token is not None)


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
        num_rows: decoded at a time, prompts of like length together: bounds the cache.

    Raises:
        ValueError: some prompt leaves no room, or is empty; nothing has been computed then.
    """
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many seeds, got {len(seeds)}")
    check(prompts, config, max_tokens, size)
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    out: list[list[int]] = [[] for _ in prompts]
    for part in (order[i : i + num_rows] for i in range(0, len(order), num_rows)):
        rows, chances = [prompts[row] for row in part], [seeds[row] for row in part]
        for ids in stream_rows(apply, init_cache, params, rows, config, chances, max_tokens, stop_ids, size):
            for row, token in zip(part, ids, strict=True):
                if token is not None:
                    out[row].append(token)
    return out


def check(prompts: Sequence[Sequence[int]], config: SampleConfig, max_tokens: int, size: int) -> None:
    """Refuse what cannot be decoded, before anything is computed.

    Raises:
        ValueError: an empty prompt, one that leaves no room, or a setting out of its range.
    """
    for prompt in prompts:
        if not prompt:
            raise ValueError("a prompt needs at least one token")
        check_prompt(len(prompt), size, max_tokens)
    sample.check(config)


def stream_rows(
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
    """One new token per row at each step, None for rows that have stopped. `check` comes before."""
    lengths = [len(prompt) for prompt in prompts]
    alive = list(range(len(prompts)))
    said = [Said(prompt, []) for prompt in prompts]
    # The mode is entered step by step: it belongs to a thread, and a suspended generator may go on in another.
    with torch.inference_mode():
        # No more room than can be used: every step reads and writes the whole cache.
        logits, cache = prefill(apply, init_cache, params, prompts, min(size, max(lengths) + max_tokens))
    for i in range(max_tokens):
        u = torch.cat([random.uniform(random.fold_in(seeds[row], i), (1,)) for row in alive])
        with torch.inference_mode():
            settings = sample.stack([config] * len(alive))
            chosen = sample.choose(sample.chain(settings, [said[row] for row in alive])(logits), u)
        ids = chosen.tolist()
        new = dict(zip(alive, ids, strict=True))
        for row, token in new.items():
            said[row] = Said(said[row].prompt, [*said[row].reply, token])
        yield [new.get(row) for row in range(len(prompts))]
        going = [lengths[row] + i + 1 < size and new[row] not in stop_ids for row in alive]
        if not any(going) or i + 1 == max_tokens:
            return
        with torch.inference_mode():
            if not all(going):
                alive = [row for row, on in zip(alive, going, strict=True) if on]
                kept = torch.tensor(going).nonzero().squeeze(-1)
                cache, chosen = kv.take(cache, kept.to(cache.length.device)), chosen[kept]
            out, cache = apply(params, chosen[:, None].to(cache.length.device), cache)
            logits = out[:, -1].float().cpu()


def prefill(
    apply: Apply, init_cache: InitCache, params: Params, prompts: Sequence[Sequence[int]], size: int
) -> tuple[Tensor, Any]:
    """Read ragged prompts in one pass: the logits behind each row's last token (float32, on the CPU), and the cache.

    Rows are padded on the right; each row's length is then set to its own, so what the padding wrote is hidden by the
    mask and overwritten by what comes.
    """
    cache = init_cache(params, len(prompts), size)
    device = cache.length.device
    longest = max(len(prompt) for prompt in prompts)
    tokens = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    logits, cache = apply(params, tokens, cache)
    last = logits[torch.arange(len(prompts), device=device), lengths - 1]
    return last.float().cpu(), cache._replace(length=lengths)
