"""Speculative decoding: several tokens guessed cheaply, checked in one pass of the model, exactly as if it had sampled.

Invariant: what comes out has the distribution of plain sampling whatever the guesses; certain guesses (n-grams) and
greedy sampling give the very tokens that `decode.generate` gives for the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import torch
from jaxtyping import Float
from torch import Tensor

from slm_fn.core import random
from slm_fn.core.random import Key
from slm_fn.core.types import Apply, Params
from slm_fn.infer import decode, fast, sample
from slm_fn.infer.engine import KEYS, ROWS, InitCache
from slm_fn.infer.filters import Said
from slm_fn.infer.sample import SampleConfig, Settings
from slm_fn.infer.state import up
from slm_fn.nn import cache as kv
from slm_fn.nn.cache import Slots


class Law(NamedTuple):
    """The filters of a config, penalties included: logits (1, V) and what lies before them to what is sampled from."""

    settings: Settings

    def __call__(self, logits: Float[Tensor, "1 V"], said: Said) -> Float[Tensor, "1 V"]:
        """The logits that are sampled from."""
        return sample.chain(self.settings, [said])(logits)

    def draw(self, logits: Float[Tensor, "1 V"], said: Said, key: Key) -> int:
        """A token as plain decoding draws it."""
        return int(sample.draw(self.settings, [said], logits, random.uniform(key, (1,))))


class Draft(NamedTuple):
    """Guessed tokens, and the probabilities each was drawn from; None where they were not drawn but certain."""

    ids: tuple[int, ...] = ()
    drawn_from: Tensor | None = None  # (N, V) float64


class Drafter(NamedTuple):
    """A source of guesses: `init()` and `propose(state, said, law, keys)`, which guesses at most a token per key."""

    init: Callable[[], Any]
    propose: Callable[[Any, Said, Law, Sequence[Key]], tuple[Any, Draft]]
    num_draft: int


class Stats(NamedTuple):
    """How it went: passes of the model, tokens guessed, guesses accepted, tokens made."""

    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    tokens: int = 0

    @property
    def acceptance(self) -> float:
        """The share of guesses that were accepted; 0 where nothing was guessed."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """Plain decoding makes one."""
        return self.tokens / self.passes if self.passes else 0.0

    def plus(self, drafted: int, accepted: int, tokens: int) -> Stats:
        """With one pass more."""
        return Stats(self.passes + 1, self.drafted + drafted, self.accepted + accepted, self.tokens + tokens)


class NgramConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which endings are looked up, and how many tokens are copied: 7 and the one before them are 8 rows of a pass."""

    num_draft: int = 7
    max_ngram: int = 4
    min_ngram: int = 2


NGRAMS = NgramConfig()


def lookup(ids: Sequence[int], num_draft: int, config: NgramConfig = NGRAMS) -> tuple[int, ...]:
    """What followed when the text last ended as it does now; the longest ending that was there before decides.

    A copy that reaches the end of the text goes on in itself: what is periodic is continued.

    References: arXiv 2304.04487 (inference with reference); prompt lookup decoding, Saxena 2023.

    Example:
        >>> lookup([1, 2, 3, 4, 9, 1, 2, 3], 2)
        (4, 9)
        >>> lookup([5, 6, 5, 6], 3)
        (5, 6, 5)
    """
    text = torch.tensor(ids, device="cpu")
    for n in range(min(config.max_ngram, len(ids) - 1), config.min_ngram - 1, -1):
        same = (text[:-1].unfold(0, n, 1) == text[-n:]).all(1).nonzero()
        if len(same):
            copied, begin = list(ids), int(same[-1]) + n
            for i in range(num_draft):
                copied.append(copied[begin + i])
            return tuple(copied[len(ids) :])
    return ()


def ngram(config: NgramConfig = NGRAMS) -> Drafter:
    """Guesses copied from the text so far: no second model, free where a text repeats itself or its prompt.

    Raises:
        ValueError: a setting below 1, or endings of no length between the two.
    """
    if config.num_draft < 1 or not 1 <= config.min_ngram <= config.max_ngram:
        raise ValueError(f"n-gram lookup wants num_draft >= 1 and 1 <= min_ngram <= max_ngram, got {config}")

    def propose(state: None, said: Said, _: Law, keys: Sequence[Key]) -> tuple[None, Draft]:
        return state, Draft(lookup((*said.prompt, *said.reply), len(keys), config))

    return Drafter(lambda: None, propose, config.num_draft)


class _Read(NamedTuple):
    """What a draft model has in its cache."""

    ids: tuple[int, ...]
    cache: Slots


def model(apply: Apply, init_cache: InitCache, params: Params, size: int, num_draft: int = 3) -> Drafter:
    """Guesses drawn from a smaller model with the same vocabulary, by the same filters.

    Args:
        size: its context; behind it nothing is guessed any more.

    Raises:
        ValueError: num_draft below 1.
    """
    if num_draft < 1:
        raise ValueError(f"num_draft must be at least 1, got {num_draft}")

    def init() -> _Read:
        return _Read((), Slots(*init_cache(params, 1, size)))

    def propose(state: _Read, said: Said, law: Law, keys: Sequence[Key]) -> tuple[_Read, Draft]:
        text, guesses, drawn_from, cache = [*said.prompt, *said.reply], list[int](), list[Tensor](), state.cache
        known = min(_common(state.ids, text), len(text) - 1)  # one token at least is read, for what it predicts
        for key in keys[: max(size - len(text) + 1, 0)]:
            logits, cache = _forward(apply, params, text[known:], cache, known, size)
            filtered = law(logits[-1:], said._replace(reply=(*said.reply, *guesses)))
            known = len(text)
            guesses.append(_choose(filtered, random.fold_in(key, "draft")))
            drawn_from.append(filtered.double().softmax(-1))
            text.append(guesses[-1])
        if not guesses:
            return state, Draft()
        return _Read(tuple(text[:known]), cache), Draft(tuple(guesses), torch.cat(drawn_from))

    return Drafter(init, propose, num_draft)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts begin with together."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def accept(logits: Float[Tensor, "1 V"], guess: int, drawn_from: Float[Tensor, " V"], key: Key) -> int:
    """A token with the distribution of `logits`; the guess, as often as can be.

    A guess d drawn from q is taken with probability min(1, p(d) / q(d)), else the token comes from what p has over q,
    max(p - q, 0). For a certain guess that is: draw from p, and see whether it is the guess (`verify` does).

    References: arXiv 2211.17192, 2302.01318.

    Example:
        >>> sure = torch.tensor([[0.0, float("-inf")]])
        >>> accept(sure, 1, torch.tensor([0.1, 0.9]).double(), key=0)
        0
    """
    p, q = logits[0].double().softmax(-1), drawn_from
    u = random.uniform(random.fold_in(key, "accept"), (1,)).double()
    if bool(u * q[guess] < p[guess]):
        return guess
    return _choose((p - q).clamp(min=0).log()[None], key)


def verify(rows: Float[Tensor, "T V"], draft: Draft, law: Law, said: Said, keys: Sequence[Key]) -> list[int]:
    """The guesses that are accepted and one token more, from the logits behind the last token and behind each guess.

    Args:
        said: what lies before the first guess.
        keys: one per row.
    """
    found, q = list[int](), draft.drawn_from
    for i, guess in enumerate(draft.ids):
        logits, told = rows[i : i + 1], said._replace(reply=(*said.reply, *found))
        found.append(law.draw(logits, told, keys[i]) if q is None else accept(law(logits, told), guess, q[i], keys[i]))
        if found[-1] != guess:
            return found
    return [*found, law.draw(rows[-1:], said._replace(reply=(*said.reply, *found)), keys[-1])]


def generate(
    apply: Apply,
    init_cache: InitCache,
    params: Params,
    prompt_ids: Sequence[int],
    drafter: Drafter,
    *,
    config: SampleConfig,
    seed: int,
    max_tokens: int,
    stop_ids: Collection[int],
    size: int,
    watch: Callable[[Stats], Any] = lambda stats: None,
) -> Iterator[int]:
    """`decode.generate` with a drafter: several tokens a pass where its guesses are good.

    Args:
        watch: told after every pass how it has gone so far.

    Raises:
        ValueError: the prompt leaves no room, or is empty; a setting is out of its range.
    """
    decode.check([prompt_ids], config, max_tokens, size)
    end = min(size, len(prompt_ids) + max_tokens)
    rounds = _rounds(apply, init_cache, params, list(prompt_ids), drafter, config, seed, stop_ids, size, end, watch)
    return (token for new in rounds for token in new)


def _rounds(
    apply: Apply,
    init_cache: InitCache,
    params: Params,
    prompt: list[int],
    drafter: Drafter,
    config: SampleConfig,
    seed: int,
    stop_ids: Collection[int],
    size: int,
    end: int,
    watch: Callable[[Stats], Any],
) -> Iterator[list[int]]:
    """The tokens of one pass after another. The inference mode is entered pass by pass, as in `decode`."""
    law, state, stats, draft, said = Law(sample.stack([config])), drafter.init(), Stats(), Draft(), Said(prompt, ())
    if end == len(prompt):
        return
    with torch.inference_mode():
        rows, cache = decode.prefill(apply, init_cache, params, prompt, size, end)
    while True:
        with torch.inference_mode():
            found = verify(rows, draft, law, said, _keys(seed, said, len(draft.ids) + 1))
        stop = next((i + 1 for i, token in enumerate(found) if token in stop_ids), 0)
        made = found[:stop] if stop else found
        stats = stats.plus(len(draft.ids), _common(found, draft.ids), len(made))
        watch(stats)
        yield made
        said = Said(prompt, (*said.reply, *made))
        length = len(prompt) + len(said.reply)
        if stop or length == end:
            return
        room = min(drafter.num_draft, end - length - 1)  # every pass makes one token more than it accepts
        with torch.inference_mode():
            state, draft = drafter.propose(state, said, law, _keys(seed, said, room)) if room else (state, Draft())
            rows, cache = _forward(apply, params, [made[-1], *draft.ids], cache, length - 1, size)


def _keys(seed: int, said: Said, num: int) -> list[Key]:
    """The keys of the next tokens, those of plain decoding."""
    return [random.fold_in(seed, len(said.reply) + i) for i in range(num)]


def _forward(
    apply: Apply, params: Params, ids: Sequence[int], cache: Slots, known: int, size: int
) -> tuple[Tensor, Slots]:
    """Logits behind each of some tokens that follow the first `known` of the cache: what lies beyond is forgotten.

    Tokens and keys are padded as the engine pads them, where its products round a row the same among any others.
    """
    device, room = cache.length.device, min(size, cache.k.shape[2]) - known
    padding = [0] * (min(up(len(ids), 1 if fast.rows_are_alike(apply) else ROWS), room) - len(ids))
    tokens = torch.tensor([[*ids, *padding]], device=device)
    num_keys = up(known + tokens.shape[1], KEYS)
    past = kv.view(cache, 1, num_keys)._replace(length=torch.tensor([known], device=device))
    logits, _ = apply(params, tokens, past)
    return logits[0, : len(ids)].float().cpu(), cache


def _choose(logits: Tensor, key: Key) -> int:
    return int(sample.choose(logits, random.uniform(key, (1,))))
