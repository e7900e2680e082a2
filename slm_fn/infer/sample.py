"""Sampling filters as functions `Logits -> Logits`, composed by a config; a choice is a function of logits and `u`.

Invariant: chance is an argument: the same logits and the same `u` choose the same token on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import msgspec
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Filter = Callable[[Tensor], Tensor]


class SampleConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to choose the next token. Temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and penalty 1 are off."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def check(config: SampleConfig) -> SampleConfig:
    """Return the config if every setting is in its range.

    Raises:
        ValueError: names the setting and its range.
    """
    ranges = {
        "temperature": config.temperature >= 0,
        "top_k": config.top_k >= 0,
        "top_p": 0 < config.top_p <= 1,
        "min_p": 0 <= config.min_p <= 1,
        "repetition_penalty": 0.01 <= config.repetition_penalty <= 100,
    }
    wanted = {"top_p": "in (0, 1]", "min_p": "in [0, 1]", "repetition_penalty": "in [0.01, 100]"}
    for name, good in ranges.items():
        if not good:
            raise ValueError(f"{name} must be {wanted.get(name, 'at least 0')}, got {getattr(config, name)}")
    return config


def temperature(t: float) -> Filter:
    """Divide by `t`; 0 leaves the largest alone. Shifted so that the largest is 0, or a small `t` would overflow."""

    def scale(logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        if t > 0:
            return (logits - logits.amax(-1, keepdim=True)) / max(t, 1e-30)
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, float("-inf")).scatter(-1, best, 0.0)

    return scale


def top_k(k: int) -> Filter:
    """Keep the `k` largest (and what ties with the last of them); 0 keeps all. arXiv 1805.04833."""

    def keep(logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        if k == 0 or k >= logits.shape[-1]:
            return logits
        return logits.masked_fill(logits < logits.topk(k).values[..., -1:], float("-inf"))

    return keep


def top_p(p: float) -> Filter:
    """Keep the fewest, likeliest tokens that reach probability `p`; the first always stays. arXiv 1904.09751."""

    def keep(logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        if p >= 1:
            return logits
        ordered, order = logits.sort(descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= p)
        return logits.masked_fill(drop, float("-inf"))

    return keep


def min_p(p: float) -> Filter:
    """Keep tokens at least `p` times as likely as the likeliest. arXiv 2407.01082."""

    def keep(logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        probabilities = logits.softmax(-1)
        return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), float("-inf"))

    return keep


def repetition_penalty(factor: float, seen: Bool[Tensor, "B V"]) -> Filter:
    """Divide positive logits of seen tokens by `factor`, multiply negative ones. arXiv 1909.05858."""

    def push(logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        return torch.where(seen, torch.where(logits > 0, logits / factor, logits * factor), logits)

    return push


def chain(config: SampleConfig, seen: Bool[Tensor, "B V"] | None = None) -> Filter:
    """All filters of a config in one: penalty, temperature, top-k, top-p, min-p."""
    filters: list[Filter] = []
    if config.repetition_penalty != 1 and seen is not None:
        filters.append(repetition_penalty(config.repetition_penalty, seen))
    filters += [temperature(config.temperature), top_k(config.top_k), top_p(config.top_p)]
    if config.min_p > 0:
        filters.append(min_p(config.min_p))
    return lambda logits: reduce(lambda x, f: f(x), filters, logits)


def choose(logits: Float[Tensor, "B V"], u: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The token whose stretch of the cumulative distribution holds `u`: exact sampling from the softmax.

    On the CPU and in float64, wherever the logits come from: in float32 the sums of a large vocabulary need not grow
    from token to token, and a filtered token could be hit.

    Example:
        >>> choose(torch.tensor([[0.0, 0.0]]), torch.tensor([0.75]))
        tensor([1])
    """
    cumulative = logits.cpu().double().softmax(-1).cumsum(-1)
    # The first place whose sum exceeds the target: it has a probability above zero, or its sum would not exceed.
    target = u.cpu().double()[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)
