"""Sampling filters in one registry: functions of logits, one setting per row, and histories.

Invariant: a row's result depends, bit for bit, on that row's logits, setting and history alone; a
logit of -inf stays -inf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LogitsBV = Float[Tensor, "B V"]
"""Logits of the next token, one row per sequence; V is the vocabulary."""

NUM_PRESORTED = 256
"""So many of the best tokens are sorted before the full vocabulary is: 0.06 ms instead of 0.2 ms
for 49,152 tokens."""

BadWords = Sequence[Sequence[int]]


class TokenHistory(NamedTuple):
    """The tokens of one sequence: its prompt, and the reply so far."""

    prompt: Sequence[int] = ()
    reply: Sequence[int] = ()


class Filter(NamedTuple):
    """A setting of `SampleConfig`.

    Attributes:
        apply: `(logits, values, histories) -> logits`, with one value and one history per row.
        disabled_value: the value that changes nothing.
        is_valid: whether a value is in range.
        valid_range: the range, for error messages.
        needs_history: whether it reads the histories.
    """

    apply: Callable[[Tensor, Any, Sequence[TokenHistory]], Tensor]
    disabled_value: Any
    is_valid: Callable[[Any], bool]
    valid_range: str
    needs_history: bool = False


def repetition_penalty(
    logits: LogitsBV,
    factors: Float[Tensor, " B"],
    histories: Sequence[TokenHistory],
) -> LogitsBV:
    """Divides positive logits of tokens in prompt or reply by the factor, multiplies negative ones.

    References: arXiv 1909.05858.
    """
    texts = [(*history.prompt, *history.reply) for history in histories]
    rows, ids, _ = _count_tokens(texts, logits)
    old = logits[rows, ids]
    factor = factors.to(logits)[rows]
    new = torch.where(old > 0, old / factor, old * factor)
    return logits.index_put((rows, ids), new)


def frequency_penalty(
    logits: LogitsBV,
    penalties: Float[Tensor, " B"],
    histories: Sequence[TokenHistory],
) -> LogitsBV:
    """Subtracts the penalty once per occurrence of a token in the reply (OpenAI's definition)."""
    rows, ids, counts = _count_tokens([history.reply for history in histories], logits)
    new = logits[rows, ids] - penalties.to(logits)[rows] * counts
    return logits.index_put((rows, ids), new)


def presence_penalty(
    logits: LogitsBV,
    penalties: Float[Tensor, " B"],
    histories: Sequence[TokenHistory],
) -> LogitsBV:
    """Subtracts the penalty once if the token occurs in the reply (OpenAI's definition)."""
    rows, ids, _ = _count_tokens([history.reply for history in histories], logits)
    new = logits[rows, ids] - penalties.to(logits)[rows]
    return logits.index_put((rows, ids), new)


def _count_tokens(
    texts: Sequence[Sequence[int]], logits: LogitsBV
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"], Float[Tensor, " N"]]:
    """The distinct tokens of each row's text: row, id and number of occurrences of each."""
    vocab_size = logits.shape[-1]
    flat_indices = []
    for row, ids in enumerate(texts):
        flat_indices.append(torch.as_tensor(ids, dtype=torch.long) + row * vocab_size)
    distinct, counts = torch.unique(torch.cat(flat_indices), return_counts=True)
    distinct = distinct.to(logits.device)
    return distinct // vocab_size, distinct % vocab_size, counts.to(logits)


def logit_bias(
    logits: LogitsBV,
    biases: Sequence[Mapping[int, float]],
    histories: Sequence[TokenHistory],
) -> LogitsBV:
    """Adds a bias to the logit of each token named."""
    del histories
    row_list: list[int] = []
    id_list: list[int] = []
    bias_list: list[float] = []
    for row, bias_by_id in enumerate(biases):
        row_list += [row] * len(bias_by_id)
        id_list += bias_by_id.keys()
        bias_list += bias_by_id.values()
    rows = torch.tensor(row_list, device=logits.device)
    ids = torch.tensor(id_list, device=logits.device)
    bias = torch.tensor(bias_list, dtype=logits.dtype, device=logits.device)
    return logits.index_put((rows, ids), logits[rows, ids] + bias)


def bad_words(
    logits: LogitsBV,
    words: Sequence[BadWords],
    histories: Sequence[TokenHistory],
) -> LogitsBV:
    """Excludes the last token of each sequence where its other tokens were the last ones generated.

    A sequence of one token is always excluded. A row in which every token would be excluded, since
    all choices of a grammar are bad words, keeps its logits.
    """
    excluded = []
    for row, row_words in enumerate(words):
        for *beginning, last in row_words:
            if _ends_with(histories[row], beginning):
                excluded.append((row, last))
    if not excluded:
        return logits
    rows, ids = torch.tensor(excluded, device=logits.device).unbind(-1)
    masked = logits.index_put((rows, ids), logits.new_tensor(float("-inf")))
    has_tokens = masked.amax(-1, keepdim=True) > float("-inf")
    return torch.where(has_tokens, masked, logits)


def _ends_with(history: TokenHistory, ids: Sequence[int]) -> bool:
    """Whether the text, which is the prompt and the reply, ends with these tokens."""
    num = len(ids)
    if num == 0:
        return True
    num_text = len(history.prompt) + len(history.reply)
    prompt_end = history.prompt[max(num_text - num, 0) :]
    return [*prompt_end, *history.reply][-num:] == list(ids)


def temperature(
    logits: LogitsBV,
    temperatures: Float[Tensor, " B"],
    histories: Sequence[TokenHistory] = (),
) -> LogitsBV:
    """Divides the logits by a temperature above 0.

    They are shifted so that the largest is 0: a small temperature would overflow otherwise.
    """
    del histories
    shifted = logits - logits.amax(-1, keepdim=True)
    return shifted / temperatures.to(logits)[:, None].clamp(min=1e-30)


def greedy(logits: LogitsBV) -> LogitsBV:
    """Temperature 0: keeps only the largest logit, of equal ones the lowest id."""
    excluded = torch.full_like(logits, float("-inf"))
    return excluded.scatter(-1, logits.argmax(-1, keepdim=True), 0.0)


def top_k(
    logits: LogitsBV,
    k: Int[Tensor, " B"],
    histories: Sequence[TokenHistory] = (),
) -> LogitsBV:
    """Keeps the `k` largest logits, and those equal to the last of them.

    References: arXiv 1805.04833.
    """
    del histories
    k = k.to(logits.device).clamp(max=logits.shape[-1])[:, None]
    threshold = logits.topk(int(k.max())).values.gather(-1, k - 1)
    return logits.masked_fill(logits < threshold, float("-inf"))


def top_p(
    logits: LogitsBV,
    p: Float[Tensor, " B"],
    histories: Sequence[TokenHistory] = (),
) -> LogitsBV:
    """Keeps the fewest most probable tokens that reach probability `p`; of equal ones the lower id.

    References: arXiv 1904.09751.
    """
    del histories
    return _keep_fewest(logits, logits, logits.softmax(-1), p.to(logits))


def typical_p(
    logits: LogitsBV,
    p: Float[Tensor, " B"],
    histories: Sequence[TokenHistory] = (),
) -> LogitsBV:
    """Keeps the fewest tokens that reach probability `p`, the most typical ones first.

    A token is more typical the nearer its surprise, -log(probability), is to the entropy.

    References: arXiv 2202.00666.
    """
    del histories
    log_probs = logits.log_softmax(-1)
    probs = log_probs.exp()
    # `cumsum` adds row by row, in order; `sum` splits a row that is alone between the threads.
    terms = (probs * log_probs).nan_to_num(0.0, neginf=float("-inf"))
    entropy = -terms.cumsum(-1)[:, -1:]
    distance = (-log_probs - entropy).abs()
    return _keep_fewest(logits, -distance, probs, p.to(logits))


def min_p(
    logits: LogitsBV,
    p: Float[Tensor, " B"],
    histories: Sequence[TokenHistory] = (),
) -> LogitsBV:
    """Keeps the tokens at least `p` times as probable as the most probable one.

    References: arXiv 2407.01082.
    """
    del histories
    probs = logits.softmax(-1)
    threshold = p.to(logits)[:, None] * probs.amax(-1, keepdim=True)
    return logits.masked_fill(probs < threshold, float("-inf"))


def _between(low: float, high: float) -> Callable[[Any], bool]:
    def is_valid(value: Any) -> bool:
        return bool(low <= value <= high)

    return is_valid


def _is_probability(value: Any) -> bool:
    return bool(0 < value <= 1)


def _is_temperature(value: Any) -> bool:
    return bool(0 <= value < float("inf"))


def _is_top_k(value: Any) -> bool:
    return bool(0 <= value < 2**31)


def _are_biases(biases: Any) -> bool:
    return all(token >= 0 and -100 <= bias <= 100 for token, bias in biases.items())


def _are_words(words: Any) -> bool:
    return all(word and min(word) >= 0 for word in words)


FILTERS: dict[str, Filter] = {
    "repetition_penalty": Filter(
        repetition_penalty, 1.0, _between(0.01, 100.0), "in [0.01, 100]", needs_history=True
    ),
    "frequency_penalty": Filter(
        frequency_penalty, 0.0, _between(-2.0, 2.0), "in [-2, 2]", needs_history=True
    ),
    "presence_penalty": Filter(
        presence_penalty, 0.0, _between(-2.0, 2.0), "in [-2, 2]", needs_history=True
    ),
    "logit_bias": Filter(logit_bias, {}, _are_biases, "ids with biases in [-100, 100]"),
    "bad_words": Filter(
        bad_words, (), _are_words, "sequences of one id or more", needs_history=True
    ),
    "temperature": Filter(temperature, 1.0, _is_temperature, "at least 0"),
    "top_k": Filter(top_k, 0, _is_top_k, "in [0, 2^31)"),
    "typical_p": Filter(typical_p, 1.0, _is_probability, "in (0, 1]"),
    "top_p": Filter(top_p, 1.0, _is_probability, "in (0, 1]"),
    "min_p": Filter(min_p, 0.0, _between(0.0, 1.0), "in [0, 1]"),
}
"""Every filter by its setting, in the order in which they apply."""


def top_ids(scores: LogitsBV, num: int) -> Int[Tensor, "B N"]:
    """Returns the ids of the largest scores in falling order, of equal ones the lower id first.

    This is the beginning of a stable sort.

    Example:
        >>> top_ids(torch.tensor([[1.0, 3.0, 1.0, 3.0]]), 3)
        tensor([[1, 3, 0]])
    """
    return _ids_of_keys(_sort_keys(scores).topk(num, largest=False).values)


def _sort_keys(scores: LogitsBV) -> Int[Tensor, "B V"]:
    """Integers, distinct in a row, that grow as scores fall and, of equal scores, with the id.

    The low 32 bits are the id.
    """
    bits = (scores.float() + 0.0).view(torch.int32)  # + 0.0: the two zeros are equal
    ascending = bits ^ (bits >> 31 & 0x7FFFFFFF)  # ordered as the numbers are
    ids = torch.arange(scores.shape[-1], device=scores.device)
    return ((~ascending).long() << 32) + ids


def _ids_of_keys(keys: Int[Tensor, "*B N"]) -> Int[Tensor, "*B N"]:
    return keys & 0xFFFFFFFF


def _keep_fewest(
    logits: LogitsBV,
    scores: LogitsBV,
    probs: LogitsBV,
    p: Float[Tensor, " B"],
) -> LogitsBV:
    """Keeps tokens by falling score, of equal ones the lower id, until `p` is reached."""
    keys = _sort_keys(scores)
    first_keys = keys.topk(min(NUM_PRESORTED, keys.shape[-1]), largest=False).values
    last_keys, is_reached = _last_kept(first_keys, probs, p)
    for row in (~is_reached).nonzero().flatten().tolist():
        one = slice(row, row + 1)
        # NumPy sorts integers 15 times as fast as PyTorch, and one row fits into the cache.
        sorted_keys = torch.from_numpy(np.sort(keys[one].cpu().numpy())).to(keys.device)
        last_keys[one], _ = _last_kept(sorted_keys, probs[one], p[one])
    return logits.masked_fill(keys > last_keys, float("-inf"))


def _last_kept(
    sorted_keys: Int[Tensor, "B N"],
    probs: LogitsBV,
    p: Float[Tensor, " B"],
) -> tuple[Int[Tensor, "B 1"], Bool[Tensor, " B"]]:
    """The key at which the sum of probabilities reaches `p`, or the last key.

    And whether it does.
    """
    cumulative = probs.gather(-1, _ids_of_keys(sorted_keys)).cumsum(-1)
    num_below = (cumulative < p[:, None]).sum(-1, keepdim=True)
    num_keys = sorted_keys.shape[-1]
    last_keys = sorted_keys.gather(-1, num_below.clamp(max=num_keys - 1))
    return last_keys, num_below.squeeze(-1) < num_keys
