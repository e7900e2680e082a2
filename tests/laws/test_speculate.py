"""Laws of speculative decoding: whatever is guessed, what comes out is what plain decoding gives."""

from functools import partial
from itertools import pairwise

import msgspec
import pytest
import torch
from laws.test_models import MODELS

from slm_fn.core import random, tree
from slm_fn.infer import decode, fast, sample, speculate
from slm_fn.infer.filters import Said
from slm_fn.infer.sample import SampleConfig
from slm_fn.infer.speculate import Draft, Drafter, Stats
from slm_fn.lift import quant
from slm_fn.nn import cache, gpt, ops

SIZE = 24
PROMPT = (5, 6, 7, 8, 5, 6, 7)
GREEDY = SampleConfig(temperature=0.0)
TOLD = {"config": GREEDY, "seed": 3, "max_tokens": 14, "stop_ids": (), "size": SIZE}


def noise(params, vocab_size):
    """A drafter that guesses anything, and says of itself that it knew."""

    def propose(state, said, law, keys):
        return state, Draft(tuple(int(random.uniform(key, (1,)) * vocab_size) for key in keys))

    return Drafter(lambda: None, propose, 5)


def drafters(config, params, rough):
    """Every kind of guesses: copied, of a model that knows better or worse, of the model itself, of nothing at all."""
    init = partial(gpt.init_cache, config)
    other = rough(config, key=9)
    return {
        "ngram": speculate.ngram(speculate.NgramConfig(min_ngram=1)),
        "itself": speculate.model(partial(gpt.apply, config), init, params, SIZE),
        "another": speculate.model(partial(gpt.apply, config), init, other, SIZE // 2, num_draft=4),
        "noise": noise(params, config.vocab_size),
    }


def plain(model, params, **changes):
    """What plain decoding says."""
    given = (partial(gpt.apply, model), partial(gpt.init_cache, model), params, PROMPT)
    return list(decode.generate(*given, **{**TOLD, **changes}))


def guessed(model, params, drafter, **changes):
    """What speculative decoding says, and how it went."""
    given = (partial(gpt.apply, model), partial(gpt.init_cache, model), params, PROMPT)
    seen = [Stats()]
    return list(speculate.generate(*given, drafter, **{**TOLD, **changes}, watch=seen.append)), seen[-1]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_is_greedy(name, rough):
    config = MODELS[name]
    params = rough(config)
    wanted = plain(config, params)
    for kind, drafter in drafters(config, params, rough).items():
        found, stats = guessed(config, params, drafter)
        assert found == wanted, kind
        assert stats.tokens == len(wanted) == 14
        if kind == "itself":
            assert stats.accepted == stats.drafted == 9
            assert stats.passes == 5  # 1, 4, 4, 4 tokens, and the last, for which there is no guess to make
        if kind == "noise":
            assert stats.acceptance < 0.2


SETTINGS = {
    "plain": SampleConfig(temperature=1.0),
    "filters": SampleConfig(temperature=0.7, top_k=9, top_p=0.9, min_p=0.02),
    "penalties": SampleConfig(repetition_penalty=1.4, frequency_penalty=0.5, presence_penalty=0.4),
    "greedy-penalties": SampleConfig(temperature=0.0, repetition_penalty=1.2, frequency_penalty=1.0),
    "words": SampleConfig(logit_bias={3: 2.0, 5: -4.0}, bad_words=((7, 8), (9,))),
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_certain_guesses_leave_every_seed_its_tokens(settings, config, rough):
    params = rough(config)
    certain = {name: made for name, made in drafters(config, params, rough).items() if name in ("ngram", "noise")}
    for seed in range(2):
        wanted = plain(config, params, seed=seed, config=SETTINGS[settings])
        for drafter in certain.values():
            assert guessed(config, params, drafter, seed=seed, config=SETTINGS[settings])[0] == wanted


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4 bfloat16"])
def test_native_steps_round_a_guess_as_they_round_a_token(kind, config, rough):
    config = msgspec.structs.replace(config, vocab_size=2048)
    params = rough(config)
    if kind.startswith("int"):
        params = quant.quantize(params, quant.NAMED[kind.split()[0]], gpt.matrices(config).__contains__)
    if kind.endswith("bfloat16"):
        params = tree.cast(params, torch.bfloat16)
    given = (fast.choose(config, params, "native").apply, partial(gpt.init_cache, config), params, PROMPT)
    for settings in (GREEDY, SampleConfig(temperature=1.0)):
        for seed in range(4):
            told = {**TOLD, "config": settings, "seed": seed}
            assert list(speculate.generate(*given, noise(params, 2048), **told)) == list(
                decode.generate(*given, **told)
            )


def test_it_ends_where_plain_decoding_ends(config, rough):
    params = rough(config)
    free = plain(config, params)
    for kind, drafter in drafters(config, params, rough).items():
        for changes in ({"stop_ids": {free[3]}}, {"stop_ids": set(free[5:8])}, {"max_tokens": 40}):
            wanted = plain(config, params, **changes)
            found, stats = guessed(config, params, drafter, **changes)
            assert found == wanted, kind
            assert stats.tokens == len(wanted)
    assert guessed(config, params, drafter, max_tokens=0) == ([], Stats())


def bigram(vocab_size, key):
    """A model that knows which token follows which: `apply`, `init_cache` and parameters like any other's."""

    def apply(params, tokens, past, head=ops.logits):
        hidden = torch.nn.functional.one_hot(tokens, vocab_size).float()
        return head(params["next"].T, hidden), past._replace(length=past.length + tokens.shape[1])

    def init_cache(params, rows, size):
        return cache.init(1, rows, size, 1, 1, torch.float32, torch.device("cpu"))

    return apply, init_cache, {"next": random.normal(key, (vocab_size, vocab_size), 1.5)}


def distribution(params, first, config, num_tokens):
    """The probability of every continuation, by its definition."""
    law, found = speculate.Law(sample.stack([config])), {(): 1.0}
    for i in range(num_tokens):
        longer = {}
        for said, p in found.items():
            logits = params["next"][(first, *said)[i]][None]
            chances = law(logits, Said((first,), said))[0].double().softmax(-1).tolist()
            longer |= {(*said, token): p * chance for token, chance in enumerate(chances)}
        found = longer
    return found


def p_value(expected, counts, num):
    """Of Pearson's chi-square test; rare outcomes are counted together."""
    common = {said: p for said, p in expected.items() if p * num >= 5}
    rest = num - sum(counts.get(said, 0) for said in common)
    missing = max(1 - sum(common.values()), 0.0)
    x = sum((counts.get(said, 0) - p * num) ** 2 / (p * num) for said, p in common.items())
    if missing * num >= 5:
        x += (rest - missing * num) ** 2 / (missing * num)
    elif rest > 5 + 5 * missing * num:
        return 0.0
    freedom = len(common) - (missing * num < 5)
    return torch.special.gammaincc(torch.tensor(freedom / 2).double(), torch.tensor(x / 2).double()).item()


def drawn(drafter, num, config, made, num_tokens=4):
    """How often each continuation came, one seed after another, and the last one's figures."""
    counts, seen = {}, [Stats()]
    told = {"config": config, "max_tokens": num_tokens, "stop_ids": (), "size": num_tokens + 2, "watch": seen.append}
    for seed in range(num):
        said = tuple(speculate.generate(*made, (0,), drafter, seed=seed, **told))
        counts[said] = counts.get(said, 0) + 1
    return counts, seen[-1]


WIDE = SampleConfig(temperature=2.0)
CHANCES = {"plain": WIDE, "filters": SampleConfig(temperature=3.0, top_k=3, min_p=0.05)}


def steps_p_value(drafter, config, made):
    """Of each token's followers in one long text: a bigram model draws each anew."""
    (said,), stats = drawn(drafter, 1, config, made, num_tokens=400)
    law, x, freedom = speculate.Law(sample.stack([config])), 0.0, 0
    text = (0, *said)
    for last, row in enumerate(made[2]["next"]):
        after = [b for a, b in pairwise(text) if a == last]
        for token, p in enumerate(law(row[None], Said((0,)))[0].double().softmax(-1).tolist()):
            assert p or token not in after
            x += (after.count(token) - p * len(after)) ** 2 / (p * len(after)) if p else 0.0
            freedom += p > 0
    freedom -= len(made[2]["next"])
    return torch.special.gammaincc(torch.tensor(freedom / 2).double(), torch.tensor(x / 2).double()).item(), stats


@pytest.mark.parametrize("settings", CHANCES)
def test_a_draft_model_changes_no_probability(settings):
    drafter = speculate.model(*bigram(4, key=1), 402, num_draft=2)
    p, stats = steps_p_value(drafter, CHANCES[settings], bigram(4, key=0))
    assert p > 1e-3
    assert 0.2 < stats.acceptance < 0.9


def test_the_law_of_chances_can_fail(monkeypatch):
    """What the test above is worth: a draft model that is simply believed is found out."""
    monkeypatch.setattr(speculate, "accept", lambda logits, guess, drawn_from, key: guess)
    drafter = speculate.model(*bigram(4, key=1), 402, num_draft=2)
    assert steps_p_value(drafter, WIDE, bigram(4, key=0))[0] < 1e-6


def test_a_guess_changes_no_probability():
    """Whatever it was drawn from: the like, the unlike, the impossible."""
    logits = torch.tensor([[0.0, 1.0, -1.0, float("-inf"), 2.0]])
    p = logits[0].double().softmax(-1)
    for q in (p, p.flip(0), torch.tensor([0.0, 0, 0, 1, 0]).double()):
        counts = {}
        for key in range(600):
            u = random.uniform(random.fold_in(key, "draft"), (1,))
            guess = int(torch.searchsorted(q.cumsum(-1), u.double(), right=True))
            token = speculate.accept(logits, guess, q, key)
            counts[token] = counts.get(token, 0) + 1
            assert q is not p or token == guess
        assert p_value(dict(enumerate(p.tolist())), counts, 600) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["plain", "penalties"])
def test_a_draft_model_changes_no_probability_of_a_text(settings):
    made, config = bigram(4, key=0), SETTINGS[settings]
    counts, _ = drawn(speculate.model(*bigram(4, key=3), 6, num_draft=3), 20_000, config, made)
    assert p_value(distribution(made[2], 0, config, 4), counts, 20_000) > 1e-3
