"""Sampling: the filters of a config as one function of logits, and the choice of a token from them.

Invariant: randomness is an argument: the same logits and the same uniform number choose the same
token on every device, whatever the other rows of the batch are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import torch
from jaxtyping import Float, Int
from torch import Tensor

from slm_fn.infer import filters
from slm_fn.infer.filters import FILTERS, LogitsBV, TokenHistory

LogitsTransform = Callable[[LogitsBV], LogitsBV]


class SampleConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the next token is chosen. Temperature 0 is greedy; each filter is off by default.

    Attributes:
        temperature: divides the logits.
        top_k: keeps the k most probable tokens.
        top_p: keeps the most probable tokens that reach this probability.
        min_p: keeps tokens with this share of the highest probability.
        repetition_penalty: over prompt and reply.
        typical_p: keeps the most typical tokens that reach this probability.
        frequency_penalty: per occurrence in the reply.
        presence_penalty: for any occurrence in the reply.
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


class FilterSetting(NamedTuple):
    """A filter that is on.

    Attributes:
        name: of the filter, in `FILTERS`.
        values: its setting as a batch of one row: a tensor (1,), or a tuple for other types.
    """

    name: str
    values: Any


class SequenceFilters(NamedTuple):
    """The filters of one sequence, in the order in which they apply.

    Attributes:
        settings: the filters that are on, without those that greedy decoding makes redundant.
        is_greedy: whether the temperature is 0.
    """

    settings: tuple[FilterSetting, ...]
    is_greedy: bool


class BatchLogprobs(NamedTuple):
    """Log probabilities of the model, before any filter.

    Attributes:
        chosen: of one id per row.
        top_ids: the most probable ids, in falling order.
        top_values: their log probabilities.
    """

    chosen: Float[Tensor, " B"]
    top_ids: Int[Tensor, "B N"]
    top_values: Float[Tensor, "B N"]


def check(config: SampleConfig, vocab_size: int | None = None) -> SampleConfig:
    """Returns the config if every setting is in its range.

    Args:
        config: the settings.
        vocab_size: token ids in the settings must be below it; None skips that check.

    Raises:
        ValueError: names the setting and its range.
    """
    for name, each in FILTERS.items():
        value = getattr(config, name)
        if not each.is_valid(value):
            raise ValueError(f"{name} must be {each.valid_range}, got {value}")
    if vocab_size is None:
        return config
    word_ids = [max(word) for word in config.bad_words]
    largest_ids = {
        "logit_bias": max(config.logit_bias, default=0),
        "bad_words": max(word_ids, default=0),
    }
    for name, token in largest_ids.items():
        if token >= vocab_size:
            raise ValueError(f"{name} names token {token}; the vocabulary has {vocab_size}")
    return config


def prepare(config: SampleConfig) -> SequenceFilters:
    """Returns the filters that a config turns on; done once per sequence, not once per token.

    Example:
        >>> filters = prepare(SampleConfig(temperature=1.0, top_k=5))
        >>> [setting.name for setting in filters.settings]
        ['top_k']
    """
    settings = []
    is_greedy = config.temperature == 0
    for name, each in FILTERS.items():
        if name == "temperature" and is_greedy:
            break  # the largest logit is chosen: neither this filter nor a later one matters
        value = getattr(config, name)
        if value == each.disabled_value:
            continue
        is_number = isinstance(each.disabled_value, int | float)
        settings.append(FilterSetting(name, torch.tensor([value]) if is_number else (value,)))
    return SequenceFilters(tuple(settings), is_greedy)


def chain(
    batch: Sequence[SequenceFilters], histories: Sequence[TokenHistory] = ()
) -> LogitsTransform:
    """Returns all filters of all rows as one function of logits.

    Their order is that of `FILTERS`: penalties, bias and bad words, temperature, top-k, typical,
    top-p, min-p. A greedy row keeps only its largest logit.

    Args:
        batch: the filters of each row.
        histories: the tokens before each row's next one; required if a filter reads them.

    Raises:
        ValueError: a filter needs histories that are missing.
    """
    _check_histories(batch, histories)

    def transform(logits: LogitsBV) -> LogitsBV:
        rows = []
        for i, row_filters in enumerate(batch):
            row = _filter_row(logits[i : i + 1], row_filters, histories[i : i + 1])
            rows.append(filters.greedy(row) if row_filters.is_greedy else row)
        return torch.cat(rows)

    return transform


def draw(
    batch: Sequence[SequenceFilters],
    histories: Sequence[TokenHistory],
    logits: LogitsBV,
    uniform: Float[Tensor, " B"],
) -> Int[Tensor, " B"]:
    """Returns the next token of each row: `choose` after `chain`, on the CPU.

    A greedy row costs an argmax.

    Args:
        batch: the filters of each row.
        histories: as in `chain`.
        logits: of the model.
        uniform: random numbers in [0, 1).

    Raises:
        ValueError: a filter needs histories that are missing.

    Example:
        >>> batch = [prepare(SampleConfig(temperature=0.0)), prepare(SampleConfig(top_k=1))]
        >>> logits = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
        >>> draw(batch, (), logits, torch.tensor([0.3, 0.9]))
        tensor([1, 0])
    """
    _check_histories(batch, histories)
    tokens = []
    # Row by row: one row fits into the processor's cache, and the memory of many rows would be
    # requested from the operating system at each step.
    for i, row in enumerate(torch.split(logits.cpu(), 1)):
        row = _filter_row(row, batch[i], histories[i : i + 1])
        is_greedy = batch[i].is_greedy
        tokens.append(row.argmax(-1) if is_greedy else choose(row, uniform[i : i + 1]))
    return torch.cat(tokens)


def _filter_row(
    logits: Float[Tensor, "1 V"],
    row_filters: SequenceFilters,
    history: Sequence[TokenHistory],
) -> Float[Tensor, "1 V"]:
    for name, values in row_filters.settings:
        logits = FILTERS[name].apply(logits, values, history)
    return logits


def _check_histories(batch: Sequence[SequenceFilters], histories: Sequence[TokenHistory]) -> None:
    if len(histories) == len(batch):
        return
    for row_filters in batch:
        for name, _ in row_filters.settings:
            if FILTERS[name].needs_history:
                raise ValueError(
                    f"{name} needs the token history of each of {len(batch)} rows, "
                    f"got {len(histories)}"
                )


def choose(logits: LogitsBV, uniform: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Samples one token per row from the softmax, exactly, by inverting the cumulative sum.

    On the CPU and in float64, wherever the logits are: in float32 the sums over a large vocabulary
    need not grow from token to token, and a token that was filtered out could be chosen.

    Args:
        logits: -inf excludes a token.
        uniform: random numbers in [0, 1).

    Example:
        >>> choose(torch.tensor([[0.0, 0.0]]), torch.tensor([0.75]))
        tensor([1])
    """
    logits_rows = torch.split(logits.cpu(), 1)
    uniform_rows = torch.split(uniform.cpu().double(), 1)
    return torch.cat(list(map(_choose_row, logits_rows, uniform_rows)))


def _choose_row(logits: Float[Tensor, "1 V"], uniform: Float[Tensor, " 1"]) -> Int[Tensor, " 1"]:
    cumulative = logits.double().softmax(-1).cumsum(-1)
    target = uniform[:, None] * cumulative[:, -1:]
    # The first token whose sum exceeds the target: its probability is above zero, or its sum would
    # not exceed it.
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def logprobs(
    logits: LogitsBV,
    chosen: Int[Tensor, " B"],
    num_top: int,
) -> BatchLogprobs:
    """Returns the log probabilities of one id per row and of the `num_top` most probable ids.

    Example:
        >>> result = logprobs(torch.tensor([[0.0, 0.0]]), torch.tensor([1]), 1)
        >>> result.chosen, result.top_ids
        (tensor([-0.6931]), tensor([[0]]))
    """
    log_probs = logits.float().log_softmax(-1)
    top_ids = filters.top_ids(log_probs, min(num_top, log_probs.shape[-1]))
    index = chosen.to(log_probs.device)[:, None]
    return BatchLogprobs(
        chosen=log_probs.gather(-1, index).squeeze(-1),
        top_ids=top_ids,
        top_values=log_probs.gather(-1, top_ids),
    )
