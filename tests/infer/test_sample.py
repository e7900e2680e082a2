"""infer/sample.py: each filter by its definition, and a choice that is exact sampling."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm_fn.core import random
from slm_fn.infer import sample
from slm_fn.infer.sample import SampleConfig

rows = st.lists(st.lists(st.floats(-8, 8, width=32), min_size=7, max_size=7), min_size=1, max_size=4).map(torch.tensor)


def kept(logits):
    return logits > float("-inf")


@given(rows, st.integers(0, 9))
def test_top_k_keeps_the_k_largest_and_ties(logits, k):
    want = torch.stack([row >= sorted(row.tolist(), reverse=True)[min(k or 7, 7) - 1] for row in logits])
    assert torch.equal(kept(sample.top_k(k)(logits)), want)


@given(rows, st.floats(0.01, 1.0))
def test_top_p_keeps_the_fewest_that_reach_p(logits, p):
    for row, mask in zip(logits, kept(sample.top_p(p)(logits)), strict=True):
        probabilities = row.softmax(-1)
        order = sorted(range(7), key=lambda i: (-row[i].item(), i))
        assert [bool(mask[i]) for i in order] == sorted((bool(m) for m in mask), reverse=True), "a prefix of the order"
        size = int(mask.sum())
        assert size >= 1
        reached = probabilities[order[:size]].sum().item()
        short = probabilities[order[: size - 1]].sum().item()
        assert reached >= p - 1e-5
        assert size == 1 or short < p + 1e-5


@given(rows, st.floats(0, 1))
def test_min_p_keeps_what_is_likely_enough(logits, p):
    probabilities = logits.softmax(-1)
    want = probabilities >= p * probabilities.amax(-1, keepdim=True)
    assert torch.equal(kept(sample.min_p(p)(logits)), want)


@given(rows, st.floats(1, 3))
def test_repetition_penalty_makes_the_seen_less_likely(logits, factor):
    seen = torch.zeros_like(logits, dtype=torch.bool)
    seen[:, ::2] = True
    out = sample.repetition_penalty(factor, seen)(logits)
    for x, y, s in zip(logits.flatten().tolist(), out.flatten().tolist(), seen.flatten().tolist(), strict=True):
        assert y == pytest.approx((x / factor if x > 0 else x * factor) if s else x, rel=1e-5)


@given(rows)
def test_temperature_zero_is_greedy_whatever_u_is(logits):
    out = sample.chain(SampleConfig(temperature=0.0, top_p=0.3, top_k=2))(logits)
    for u in (0.0, 0.5, 0.999999):
        assert torch.equal(sample.choose(out, torch.full((len(logits),), u)), logits.argmax(-1))


def test_filters_apply_together():
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0]])
    config = SampleConfig(temperature=1.0, top_k=3, top_p=0.9)
    assert kept(sample.chain(config)(logits)).tolist() == [[True, True, False, False, False]]
    assert kept(sample.chain(SampleConfig(temperature=1.0, top_k=3))(logits)).tolist() == [[True] * 3 + [False] * 2]


def test_the_order_is_penalty_temperature_top_k_top_p_min_p():
    logits, seen = torch.tensor([[2.0, 1.9, 0.5, -1.0]]), torch.tensor([[True, False, False, False]])
    config = SampleConfig(temperature=0.5, top_k=3, top_p=0.95, min_p=0.05, repetition_penalty=2.0)
    first, second = sample.repetition_penalty(2.0, seen), sample.temperature(0.5)
    want = sample.min_p(0.05)(sample.top_p(0.95)(sample.top_k(3)(second(first(logits)))))
    assert torch.equal(sample.chain(config, seen)(logits), want)
    assert not torch.equal(sample.chain(config, seen)(logits), sample.chain(config)(logits))


@given(rows, st.sampled_from([1e-300, 1e-38, 1e-9, 1e3, 1e38]))
def test_no_temperature_overflows(logits, t):
    out = sample.temperature(t)(logits)
    assert not out.isnan().any()
    assert (out.amax(-1) == 0).all()
    assert kept(out).gather(1, sample.choose(out, torch.full((len(logits),), 0.999))[:, None]).all()


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-24])
def test_a_large_vocabulary_never_yields_what_was_dropped(u):
    logits = random.normal(0, (8, 50_000), std=3.0)
    out = sample.top_p(0.9)(logits)
    assert kept(out).gather(1, sample.choose(out, torch.full((8,), u))[:, None]).all()


def test_choices_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, float("-inf")]])
    draws = 20_000
    u = random.uniform(0, (draws,))
    counts = torch.bincount(sample.choose(logits.expand(draws, 4), u), minlength=4)
    expected = logits[0].softmax(-1) * draws
    assert counts[3] == 0
    chi = ((counts[:3] - expected[:3]) ** 2 / expected[:3]).sum().item()
    assert chi < 13.8  # 0.1 % of fair draws exceed it, with 2 degrees of freedom; the key is fixed


@given(rows, st.floats(0, 1, exclude_max=True, width=32))
def test_a_choice_is_never_a_token_that_was_dropped(logits, u):
    out = sample.chain(SampleConfig(temperature=1.0, top_k=2))(logits)
    chosen = sample.choose(out, torch.full((len(logits),), u))
    assert kept(out).gather(1, chosen[:, None]).all()


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}, {"min_p": 2}, {"repetition_penalty": 0}]
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        sample.check(SampleConfig(**wrong))
    assert math.isclose(sample.check(SampleConfig()).temperature, 0.8)
