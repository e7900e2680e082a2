"""Sources of draft tokens: n-grams of the text so far, and a smaller model.

Invariant: a draft is a function of the text, the target distribution and the keys; a drafter's
state only saves computation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import torch
from jaxtyping import Float
from torch import Tensor

from slm_fn.core import random
from slm_fn.core.random import Key
from slm_fn.infer import sampling
from slm_fn.infer.batching.batch_sizes import BATCH_MULTIPLE
from slm_fn.infer.batching.engine_state import KEY_MULTIPLE, round_up
from slm_fn.infer.decoder import Decoder
from slm_fn.infer.filters import TokenHistory
from slm_fn.infer.sampling import SampleConfig, SequenceFilters
from slm_fn.nn import cache
from slm_fn.nn.cache import InPlaceKVCache


class TargetDistribution(NamedTuple):
    """The distribution that tokens are sampled from: the model's, after all filters of a config.

    Attributes:
        filters: the sampling filters.
    """

    filters: SequenceFilters

    def logits(
        self,
        logits: Float[Tensor, "1 V"],
        history: TokenHistory,
    ) -> Float[Tensor, "1 V"]:
        """Returns the filtered logits of the next token after a history."""
        return sampling.chain([self.filters], [history])(logits)

    def sample(
        self,
        logits: Float[Tensor, "1 V"],
        history: TokenHistory,
        key: Key,
    ) -> int:
        """Returns the next token as plain decoding samples it."""
        uniform = random.uniform(key, (1,))
        return int(sampling.draw([self.filters], [history], logits, uniform))


def target_of(config: SampleConfig) -> TargetDistribution:
    """Returns the target distribution of sampling settings."""
    return TargetDistribution(sampling.prepare(config))


class Draft(NamedTuple):
    """Draft tokens.

    Attributes:
        ids: the tokens.
        probs: (N, V) float64, the probabilities each was sampled from; None if the draft is
            deterministic.
    """

    ids: tuple[int, ...] = ()
    probs: Float[Tensor, "N V"] | None = None


class Drafter(NamedTuple):
    """A source of draft tokens.

    Attributes:
        init: makes its state.
        propose: `(state, history, target, keys) -> (state, draft)`, at most one token per key.
        num_draft: the most tokens of a draft.
    """

    init: Callable[[], Any]
    propose: Callable[[Any, TokenHistory, TargetDistribution, Sequence[Key]], tuple[Any, Draft]]
    num_draft: int


class NgramConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of n-gram drafts.

    Attributes:
        num_draft: tokens of a draft; 7 and the token before them are 8 tokens of a pass.
        max_ngram: the longest n-gram that is looked up.
        min_ngram: the shortest one.
    """

    num_draft: int = 7
    max_ngram: int = 4
    min_ngram: int = 2


NGRAM_DEFAULTS = NgramConfig()


def find_continuation(
    ids: Sequence[int],
    num_draft: int,
    config: NgramConfig = NGRAM_DEFAULTS,
) -> tuple[int, ...]:
    """Returns the tokens that followed the latest earlier occurrence of the text's last n-gram.

    The longest n-gram that occurs earlier is taken. A copy that reaches the end of the text
    continues with itself, so a periodic text is continued.

    Args:
        ids: the text.
        num_draft: tokens to return; none if no n-gram occurs earlier.
        config: lengths of n-grams.

    References: arXiv 2304.04487 (inference with reference); prompt lookup decoding, Saxena 2023.

    Example:
        >>> find_continuation([1, 2, 3, 4, 9, 1, 2, 3], 2)
        (4, 9)
        >>> find_continuation([5, 6, 5, 6], 3)
        (5, 6, 5)
    """
    text = torch.tensor(ids, device="cpu")
    longest = min(config.max_ngram, len(ids) - 1)
    for n in range(longest, config.min_ngram - 1, -1):
        ngrams = text[:-1].unfold(0, n, 1)
        matches = (ngrams == text[-n:]).all(1).nonzero()
        if len(matches) == 0:
            continue
        start = int(matches[-1]) + n
        copied = list(ids)
        for i in range(num_draft):
            copied.append(copied[start + i])
        return tuple(copied[len(ids) :])
    return ()


def ngram_drafter(config: NgramConfig = NGRAM_DEFAULTS) -> Drafter:
    """Returns a drafter that copies from the text so far.

    It needs no second model and costs nothing; it helps where a text repeats itself or its prompt.

    Raises:
        ValueError: a setting is below 1, or `min_ngram` exceeds `max_ngram`.
    """
    if config.num_draft < 1 or not 1 <= config.min_ngram <= config.max_ngram:
        raise ValueError(
            f"n-gram lookup needs num_draft >= 1 and 1 <= min_ngram <= max_ngram, got {config}"
        )

    def init() -> None:
        return None

    def propose(
        state: None,
        history: TokenHistory,
        target: TargetDistribution,
        keys: Sequence[Key],
    ) -> tuple[None, Draft]:
        del target
        text = (*history.prompt, *history.reply)
        return state, Draft(find_continuation(text, len(keys), config))

    return Drafter(init, propose, config.num_draft)


class _DraftState(NamedTuple):
    """The tokens in the cache of a draft model, and the cache."""

    ids: tuple[int, ...]
    cache: InPlaceKVCache


def model_drafter(
    decoder: Decoder,
    context: int,
    num_draft: int = 3,
) -> Drafter:
    """Returns a drafter that samples from a smaller model with the same vocabulary and filters.

    Args:
        decoder: the draft model.
        context: its context; there are no draft tokens beyond it.
        num_draft: the most tokens of a draft.

    Raises:
        ValueError: num_draft is below 1.
    """
    if num_draft < 1:
        raise ValueError(f"num_draft must be at least 1, got {num_draft}")

    def init() -> _DraftState:
        empty = decoder.init_cache(decoder.params, 1, context)
        return _DraftState((), InPlaceKVCache(*empty))

    def propose(
        state: _DraftState,
        history: TokenHistory,
        target: TargetDistribution,
        keys: Sequence[Key],
    ) -> tuple[_DraftState, Draft]:
        text = [*history.prompt, *history.reply]
        kv_cache = state.cache
        # At least one token is computed, for the logits after it.
        num_known = min(common_length(state.ids, text), len(text) - 1)
        ids: list[int] = []
        probs: list[Tensor] = []
        max_draft = max(context - len(text) + 1, 0)
        for key in keys[:max_draft]:
            logits, kv_cache = forward(decoder, text[num_known:], kv_cache, num_known, context)
            drafted = history._replace(reply=(*history.reply, *ids))
            filtered = target.logits(logits[-1:], drafted)
            num_known = len(text)
            ids.append(sample_token(filtered, random.fold_in(key, "draft")))
            probs.append(filtered.double().softmax(-1))
            text.append(ids[-1])
        if not ids:
            return state, Draft()
        return _DraftState(tuple(text[:num_known]), kv_cache), Draft(tuple(ids), torch.cat(probs))

    return Drafter(init, propose, num_draft)


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Returns the length of the longest common prefix."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def forward(
    decoder: Decoder,
    ids: Sequence[int],
    kv_cache: InPlaceKVCache,
    num_known: int,
    context: int,
) -> tuple[Float[Tensor, "T V"], InPlaceKVCache]:
    """Returns the logits after each of some tokens that follow the first `num_known` of the cache.

    What the cache has beyond those is overwritten. Tokens and keys are padded as the engine pads
    them, so that its products round a row the same whatever the other rows are.
    """
    device = kv_cache.length.device
    num_free = min(context, kv_cache.k.shape[2]) - num_known
    multiple = 1 if decoder.is_batch_invariant else BATCH_MULTIPLE
    num_tokens = min(round_up(len(ids), multiple), num_free)
    padding = [0] * (num_tokens - len(ids))
    tokens = torch.tensor([[*ids, *padding]], device=device)
    num_keys = round_up(num_known + num_tokens, KEY_MULTIPLE)
    view = cache.view(kv_cache, 1, num_keys)
    past = view._replace(length=torch.tensor([num_known], device=device))
    logits: Tensor
    logits, _ = decoder.apply(decoder.params, tokens, past)
    return logits[0, : len(ids)].float().cpu(), kv_cache


def sample_token(logits: Float[Tensor, "1 V"], key: Key) -> int:
    """Returns a token sampled from the softmax of filtered logits."""
    return int(sampling.choose(logits, random.uniform(key, (1,))))
