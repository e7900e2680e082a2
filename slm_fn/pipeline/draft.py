"""Guesses for a model by name: `ngram`, or the folder of a smaller model; and text written with them.

Invariant: who guesses changes how fast a text comes, never which texts come how often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from slm_fn.infer import speculate, stream
from slm_fn.infer.sample import SampleConfig
from slm_fn.infer.speculate import Drafter, Stats
from slm_fn.infer.stream import Piece
from slm_fn.pipeline import model as models
from slm_fn.pipeline.model import Model

NGRAM = "ngram"


def drafter(
    model: Model, how: str, device: torch.device | str = "cpu", raw: bool = False, decode: str = "auto"
) -> Drafter:
    """Who guesses for a model: `ngram`, or the model, run or checkpoint folder of one with the same tokenizer.

    Args:
        decode: the engine of the smaller model's `apply`, as in `model.load`.

    Raises:
        FileNotFoundError, ValueError: no such folder, or its model speaks in other tokens.
    """
    if how == NGRAM:
        return speculate.ngram()
    small = models.load(how, device, raw, decode=decode)
    if small.tokenizer.fingerprint != model.tokenizer.fingerprint:
        raise ValueError(f"{how}: has another tokenizer; a draft model needs the same one")
    return speculate.model(small.apply, small.init_cache, small.params, small.config.context)


def write(
    model: Model,
    drafter: Drafter,
    ids: Sequence[int],
    config: SampleConfig,
    seed: int,
    max_tokens: int | None = None,
    stops: Sequence[str] = (),
    watch: Callable[[Stats], Any] = lambda stats: None,
) -> Iterator[Piece]:
    """`talk.write` with guesses; `watch` is told after every pass how many were right.

    Raises:
        ValueError: before the first piece: the ids do not fit the context, or a setting is out of its range.
    """
    size = model.config.context
    tokens = speculate.generate(
        model.apply,
        model.init_cache,
        model.params,
        ids,
        drafter,
        config=config,
        seed=seed,
        max_tokens=max(size - len(ids), 1) if max_tokens is None else max_tokens,
        stop_ids=model.stop_ids,
        size=size,
        watch=watch,
    )
    return stream.pieces(tokens, model.tokenizer.token_bytes, model.stop_ids, stops)
