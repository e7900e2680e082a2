"""Sampling as functions `Logits -> Logits`, composed by the configs of rows; a choice is a function of logits and `u`.

Invariant: chance is an argument: the same logits and the same `u` choose the same token on every device, whatever the
rows beside it are and want.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import torch
from jaxtyping import Float, Int
from torch import Tensor

from slm_fn.infer import filters
from slm_fn.infer.filters import FILTERS, Said

Link = Callable[[Tensor], Tensor]


class SampleConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to choose the next token. Temperature 0 is greedy; of the filters each default is off.

    Attributes:
        repetition_penalty: over prompt and reply; the frequency and presence penalties count the reply alone.
        logit_bias: added to the logits of these ids.
        bad_words: sequences of ids that are never completed.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    typical_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    bad_words: tuple[tuple[int, ...], ...] = ()


class Setting(NamedTuple):
    """One filter, the rows that want it, and how."""

    name: str
    rows: Int[Tensor, " N"]
    values: Any  # (N,), or a tuple of N where a value is no number


class Settings(NamedTuple):
    """The configs of rows that sample together: only what some row wants."""

    num_rows: int
    filters: tuple[Setting, ...]
    greedy: tuple[int, ...]  # rows of temperature 0


class Logprobs(NamedTuple):
    """Log probabilities of the model itself: the chosen token's, and the likeliest ids with theirs."""

    chosen: Float[Tensor, " B"]
    ids: Int[Tensor, "B N"]
    values: Float[Tensor, "B N"]


def check(config: SampleConfig, vocab_size: int | None = None) -> SampleConfig:
    """Return the config if every setting is in its range.

    Raises:
        ValueError: names the setting and its range.
    """
    for name, filter in FILTERS.items():
        value = getattr(config, name)
        if not filter.good(value):
            raise ValueError(f"{name} must be {filter.wanted}, got {value}")
    named = {
        "logit_bias": max(config.logit_bias, default=0),
        "bad_words": max((i for word in config.bad_words for i in word), default=0),
    }
    for name, token in named.items():
        if vocab_size is not None and token >= vocab_size:
            raise ValueError(f"{name} names token {token}; the vocabulary has {vocab_size}")
    return config


def stack(configs: Sequence[SampleConfig]) -> Settings:
    """The settings of rows side by side; do it when rows join or leave, not at every token.

    Example:
        >>> [setting.name for setting in stack([SampleConfig(), SampleConfig(temperature=1.0, top_k=5)]).filters]
        ['temperature', 'top_k']
    """
    found: list[Setting] = []
    greedy = tuple(row for row, config in enumerate(configs) if config.temperature == 0)
    done: tuple[int, ...] = ()
    for name, filter in FILTERS.items():
        if name == "temperature":  # the largest is left to a greedy row: it has no use for this filter and the next
            done = greedy
        every = [getattr(config, name) for config in configs]
        rows = [row for row, value in enumerate(every) if value != filter.off and row not in done]
        if rows:
            values = [every[row] for row in rows]
            numbers = isinstance(filter.off, int | float)
            found.append(Setting(name, torch.tensor(rows), torch.tensor(values) if numbers else tuple(values)))
    return Settings(len(configs), tuple(found), greedy)


def chain(settings: Settings, said: Sequence[Said] = ()) -> Link:
    """All filters of all rows in one: penalties, bias and bad words, temperature, top-k, typical, top-p, min-p.

    Args:
        said: per row its prompt and what it has said, where some row has a penalty or bad words.

    Raises:
        ValueError: what rows have said is needed and not told.
    """
    _check_said(settings, said)

    def link(logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        for name, rows, values in settings.filters:
            told = [said[row] for row in rows.tolist()] if said else ()
            logits = _some(logits, rows, FILTERS[name].apply, values, told)
        return _some(logits, torch.tensor(settings.greedy, dtype=torch.long), filters.greedy)

    return link


def draw(
    settings: Settings, said: Sequence[Said], logits: Float[Tensor, "B V"], u: Float[Tensor, " B"]
) -> Int[Tensor, " B"]:
    """The next token of each row: what `choose` finds behind `chain`, on the CPU. A greedy row costs an argmax.

    Raises:
        ValueError: as `chain`.

    Example:
        >>> settings = stack([SampleConfig(temperature=0.0), SampleConfig(top_k=1)])
        >>> draw(settings, (), torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([0.3, 0.9]))
        tensor([1, 0])
    """
    _check_said(settings, said)
    links: list[list[tuple[Callable[..., Tensor], Any]]] = [[] for _ in range(settings.num_rows)]
    for name, rows, values in settings.filters:
        for i, row in enumerate(rows.tolist()):
            links[row].append((FILTERS[name].apply, values[i : i + 1]))
    found = []
    # Row by row: what one needs stays in the cache of the processor, what many need is fetched anew from the system.
    for row, x in enumerate(logits.cpu().split(1)):
        for apply, value in links[row]:
            x = apply(x, value, said[row : row + 1])
        found.append(x.argmax(-1) if row in settings.greedy else choose(x, u[row : row + 1]))
    return torch.cat(found)


def _check_said(settings: Settings, said: Sequence[Said]) -> None:
    needs = next((setting.name for setting in settings.filters if FILTERS[setting.name].reads_said), None)
    if needs and len(said) != settings.num_rows:
        raise ValueError(f"{needs} needs what each of {settings.num_rows} rows has said, got {len(said)}")


def _some(
    logits: Float[Tensor, "B V"], rows: Int[Tensor, " N"], apply: Callable[..., Tensor], *args: Any
) -> Float[Tensor, "B V"]:
    """Some rows through a function, the others as they are."""
    if len(rows) == len(logits):
        return apply(logits, *args)
    at = rows.to(logits.device)
    return logits.index_copy(0, at, apply(logits[at], *args)) if len(rows) else logits


def choose(logits: Float[Tensor, "B V"], u: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The token whose stretch of the cumulative distribution holds `u`: exact sampling from the softmax.

    On the CPU and in float64, wherever the logits come from: in float32 the sums of a large vocabulary need not grow
    from token to token, and a filtered token could be hit.

    Example:
        >>> choose(torch.tensor([[0.0, 0.0]]), torch.tensor([0.75]))
        tensor([1])
    """
    return torch.cat([_choose(*row) for row in zip(logits.cpu().split(1), u.cpu().double().split(1), strict=True)])


def _choose(logits: Float[Tensor, "1 V"], u: Float[Tensor, " 1"]) -> Int[Tensor, " 1"]:
    cumulative = logits.double().softmax(-1).cumsum(-1)
    # The first place whose sum exceeds the target: it has a probability above zero, or its sum would not exceed.
    return torch.searchsorted(cumulative, u[:, None] * cumulative[:, -1:], right=True).squeeze(-1)


def logprobs(logits: Float[Tensor, "B V"], chosen: Int[Tensor, " B"], num_top: int) -> Logprobs:
    """What the model thought of the chosen tokens and of the `num_top` likeliest, before any filter.

    Example:
        >>> logprobs(torch.tensor([[0.0, 0.0]]), torch.tensor([1]), 1)
        Logprobs(chosen=tensor([-0.6931]), ids=tensor([[0]]), values=tensor([[-0.6931]]))
    """
    every = logits.float().log_softmax(-1)
    ids = filters.largest(every, min(num_top, every.shape[-1]))
    at = chosen.to(every.device)[:, None]
    return Logprobs(every.gather(-1, at).squeeze(-1), ids, every.gather(-1, ids))
