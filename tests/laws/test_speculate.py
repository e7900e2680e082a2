"""Laws of speculative decoding: whatever the draft, the tokens are those of plain decoding."""

from functools import partial
from itertools import pairwise

import msgspec
import pytest
import torch
from laws.test_models import MODELS

from slm_fn.core import random, tree
from slm_fn.infer import decoder as decoders
from slm_fn.infer import drafters, generate, speculation
from slm_fn.infer.decoder import Decoder
from slm_fn.infer.drafters import Draft, Drafter, NgramConfig
from slm_fn.infer.filters import TokenHistory
from slm_fn.infer.request import Request
from slm_fn.infer.sampling import SampleConfig
from slm_fn.infer.speculation import SpeculationStats
from slm_fn.lift import quant
from slm_fn.nn import cache, gpt, ops

CONTEXT = 24
PROMPT = (5, 6, 7, 8, 5, 6, 7)
GREEDY = SampleConfig(temperature=0.0)
REQUEST = Request(PROMPT, GREEDY, seed=3, max_tokens=14)


def eager_decoder(config, params):
    return Decoder(partial(gpt.apply, config), partial(gpt.init_cache, config), params)


def random_drafter(vocab_size):
    """A drafter of random tokens that claims to be deterministic."""

    def propose(state, history, target, keys):
        ids = tuple(int(random.uniform(key, (1,)) * vocab_size) for key in keys)
        return state, Draft(ids)

    return Drafter(lambda: None, propose, 5)


def make_drafters(config, params, rough):
    """Drafts of every kind: n-grams, the model itself, another model, and random tokens."""
    own = eager_decoder(config, params)
    other = eager_decoder(config, rough(config, key=9))
    return {
        "ngram": drafters.ngram_drafter(NgramConfig(min_ngram=1)),
        "itself": drafters.model_drafter(own, CONTEXT),
        "another": drafters.model_drafter(other, CONTEXT // 2, num_draft=4),
        "random": random_drafter(config.vocab_size),
    }


def plain(config, params, **changes):
    """The tokens of plain decoding."""
    request = REQUEST._replace(**changes)
    return list(generate.generate(eager_decoder(config, params), request, CONTEXT))


def speculate(config, params, drafter, **changes):
    """The tokens of speculative decoding, and its statistics."""
    stats = [SpeculationStats()]
    request = REQUEST._replace(**changes)
    decoder = eager_decoder(config, params)
    tokens = speculation.generate(decoder, drafter, request, CONTEXT, stats.append)
    return list(tokens), stats[-1]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_is_greedy(name, rough):
    config = MODELS[name]
    params = rough(config)
    expected = plain(config, params)
    for kind, drafter in make_drafters(config, params, rough).items():
        tokens, stats = speculate(config, params, drafter)
        assert tokens == expected, kind
        assert stats.tokens == len(expected) == 14
        if kind == "itself":
            assert stats.accepted == stats.drafted == 9
            # 1, 4, 4, 4 tokens, and the last one, for which there is no draft.
            assert stats.passes == 5
        if kind == "random":
            assert stats.acceptance < 0.2


SETTINGS = {
    "plain": SampleConfig(temperature=1.0),
    "filters": SampleConfig(temperature=0.7, top_k=9, top_p=0.9, min_p=0.02),
    "penalties": SampleConfig(repetition_penalty=1.4, frequency_penalty=0.5, presence_penalty=0.4),
    "greedy-penalties": SampleConfig(
        temperature=0.0, repetition_penalty=1.2, frequency_penalty=1.0
    ),
    "words": SampleConfig(logit_bias={3: 2.0, 5: -4.0}, bad_words=((7, 8), (9,))),
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_deterministic_draft_changes_no_token_of_any_seed(settings, config, rough):
    params = rough(config)
    by_kind = make_drafters(config, params, rough)
    sampling_config = SETTINGS[settings]
    for seed in range(2):
        expected = plain(config, params, seed=seed, sampling=sampling_config)
        for kind in ("ngram", "random"):
            tokens, _ = speculate(
                config, params, by_kind[kind], seed=seed, sampling=sampling_config
            )
            assert tokens == expected


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4 bfloat16"])
def test_native_steps_round_a_draft_token_as_they_round_a_token(kind, config, rough):
    config = msgspec.structs.replace(config, vocab_size=2048)
    params = rough(config)
    if kind.startswith("int"):
        preset = quant.PRESETS[kind.split()[0]]
        params = quant.quantize(params, preset, gpt.matrix_paths(config).__contains__)
    if kind.endswith("bfloat16"):
        params = tree.cast(params, torch.bfloat16)
    native = decoders.select(config, params, "native")
    for settings in (GREEDY, SampleConfig(temperature=1.0)):
        for seed in range(4):
            request = REQUEST._replace(sampling=settings, seed=seed)
            tokens = speculation.generate(native, random_drafter(2048), request, CONTEXT)
            assert list(tokens) == list(generate.generate(native, request, CONTEXT))


def test_it_ends_where_plain_decoding_ends(config, rough):
    params = rough(config)
    free = plain(config, params)
    limits = (
        {"stop_ids": frozenset([free[3]])},
        {"stop_ids": frozenset(free[5:8])},
        {"max_tokens": 40},
    )
    for kind, drafter in make_drafters(config, params, rough).items():
        for changes in limits:
            expected = plain(config, params, **changes)
            tokens, stats = speculate(config, params, drafter, **changes)
            assert tokens == expected, kind
            assert stats.tokens == len(expected)
    assert speculate(config, params, drafter, max_tokens=0) == ([], SpeculationStats())


def bigram(vocab_size, key):
    """The decoder of a bigram model: the next token depends on the last one only."""

    def apply(params, tokens, past, head=ops.logits):
        hidden = torch.nn.functional.one_hot(tokens, vocab_size).float()
        return head(params["next"].T, hidden), past._replace(length=past.length + tokens.shape[1])

    def init_cache(params, batch_size, max_len):
        return cache.init(1, batch_size, max_len, 1, 1, torch.float32, torch.device("cpu"))

    params = {"next": random.normal(key, (vocab_size, vocab_size), 1.5)}
    return Decoder(apply, init_cache, params)


def distribution(params, first, config, num_tokens):
    """The probability of every continuation, by its definition."""
    target = drafters.target_of(config)
    probabilities = {(): 1.0}
    for i in range(num_tokens):
        longer = {}
        for reply, p in probabilities.items():
            logits = params["next"][(first, *reply)[i]][None]
            filtered = target.logits(logits, TokenHistory((first,), reply))
            for token, q in enumerate(filtered[0].double().softmax(-1).tolist()):
                longer[(*reply, token)] = p * q
        probabilities = longer
    return probabilities


def chi_square_p_value(x, freedom):
    halves = torch.tensor([freedom / 2, x / 2]).double()
    return torch.special.gammaincc(*halves).item()


def p_value(expected, counts, num):
    """Of Pearson's chi-square test; rare outcomes are counted together."""
    common = {outcome: p for outcome, p in expected.items() if p * num >= 5}
    rest = num - sum(counts.get(outcome, 0) for outcome in common)
    missing = max(1 - sum(common.values()), 0.0)
    x = sum((counts.get(outcome, 0) - p * num) ** 2 / (p * num) for outcome, p in common.items())
    if missing * num >= 5:
        x += (rest - missing * num) ** 2 / (missing * num)
    elif rest > 5 + 5 * missing * num:
        return 0.0
    freedom = len(common) - (missing * num < 5)
    return chi_square_p_value(x, freedom)


def count_continuations(drafter, num, config, decoder, num_tokens=4):
    """How often each continuation is generated by `num` seeds, and the last one's statistics."""
    counts = {}
    stats = [SpeculationStats()]
    for seed in range(num):
        request = Request((0,), config, seed, num_tokens)
        tokens = speculation.generate(decoder, drafter, request, num_tokens + 2, stats.append)
        reply = tuple(tokens)
        counts[reply] = counts.get(reply, 0) + 1
    return counts, stats[-1]


FLAT = SampleConfig(temperature=2.0)
SAMPLED = {"plain": FLAT, "filters": SampleConfig(temperature=3.0, top_k=3, min_p=0.05)}


def bigrams_p_value(drafter, config, decoder):
    """Of the successors of each token in one long text: a bigram model samples each anew."""
    (reply,), stats = count_continuations(drafter, 1, config, decoder, num_tokens=400)
    target = drafters.target_of(config)
    text = (0, *reply)
    x = 0.0
    freedom = 0
    rows = decoder.params["next"]
    for last, row in enumerate(rows):
        successors = [b for a, b in pairwise(text) if a == last]
        filtered = target.logits(row[None], TokenHistory((0,)))
        for token, p in enumerate(filtered[0].double().softmax(-1).tolist()):
            assert p or token not in successors
            if p:
                expected = p * len(successors)
                x += (successors.count(token) - expected) ** 2 / expected
                freedom += 1
    return chi_square_p_value(x, freedom - len(rows)), stats


@pytest.mark.parametrize("settings", SAMPLED)
def test_a_draft_model_changes_no_probability(settings):
    drafter = drafters.model_drafter(bigram(4, key=1), 402, num_draft=2)
    p, stats = bigrams_p_value(drafter, SAMPLED[settings], bigram(4, key=0))
    assert p > 1e-3
    assert 0.2 < stats.acceptance < 0.9


def test_the_statistical_test_can_fail(monkeypatch):
    """Draft tokens that are always accepted are detected by the test above."""
    monkeypatch.setattr(speculation, "accept", lambda logits, draft_id, probs, key: draft_id)
    drafter = drafters.model_drafter(bigram(4, key=1), 402, num_draft=2)
    assert bigrams_p_value(drafter, FLAT, bigram(4, key=0))[0] < 1e-6


def test_accept_changes_no_probability():
    """Whatever the draft distribution: the same, another, an impossible token."""
    logits = torch.tensor([[0.0, 1.0, -1.0, float("-inf"), 2.0]])
    p = logits[0].double().softmax(-1)
    for q in (p, p.flip(0), torch.tensor([0.0, 0, 0, 1, 0]).double()):
        counts = {}
        for key in range(600):
            u = random.uniform(random.fold_in(key, "draft"), (1,))
            draft_id = int(torch.searchsorted(q.cumsum(-1), u.double(), right=True))
            token = speculation.accept(logits, draft_id, q, key)
            counts[token] = counts.get(token, 0) + 1
            assert q is not p or token == draft_id
        assert p_value(dict(enumerate(p.tolist())), counts, 600) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["plain", "penalties"])
def test_a_draft_model_changes_no_probability_of_a_text(settings):
    decoder = bigram(4, key=0)
    config = SETTINGS[settings]
    drafter = drafters.model_drafter(bigram(4, key=3), 6, num_draft=3)
    counts, _ = count_continuations(drafter, 20_000, config, decoder)
    assert p_value(distribution(decoder.params, 0, config, 4), counts, 20_000) > 1e-3
