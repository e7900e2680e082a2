"""infer/sample.py: settings in their ranges, rows that sample together, and a choice that is exact sampling."""

import json

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm_fn.core import random
from slm_fn.infer import sample
from slm_fn.infer.filters import Said
from slm_fn.infer.sample import SampleConfig

rows = st.lists(st.lists(st.floats(-8, 8, width=32), min_size=7, max_size=7), min_size=1, max_size=4).map(torch.tensor)


def chained(logits, **given):
    config = SampleConfig(**given)
    return sample.chain(sample.stack([config] * len(logits)), [Said()] * len(logits))(logits)


def kept(logits):
    return logits > float("-inf")


@given(rows)
def test_temperature_zero_is_greedy_whatever_u_is(logits):
    out = chained(logits, temperature=0.0, top_p=0.3, top_k=2)
    for u in (0.0, 0.5, 0.999999):
        assert torch.equal(sample.choose(out, torch.full((len(logits),), u)), logits.argmax(-1))


def test_a_greedy_row_costs_no_filter_behind_the_temperature():
    config = SampleConfig(temperature=0.0, top_k=3, top_p=0.5, typical_p=0.5, min_p=0.1)
    assert sample.stack([config, SampleConfig(temperature=1.0)]) == (2, (), (0,))


def test_greedy_rows_are_drawn_without_a_distribution_whatever_the_others_want(monkeypatch):
    configs = [
        SampleConfig(temperature=0.0),
        SampleConfig(top_p=0.9),
        SampleConfig(temperature=0.0, logit_bias={3: 9.0}),
    ]
    logits, u = random.normal(0, (3, 50)), torch.tensor([0.1, 0.5, 0.9])
    want = sample.choose(sample.chain(sample.stack(configs))(logits), u)
    plain, rows = sample.choose, []
    monkeypatch.setattr(sample, "choose", lambda logits, u: rows.append(len(logits)) or plain(logits, u))
    assert torch.equal(sample.draw(sample.stack(configs), (), logits, u), want)
    assert rows == [1]
    assert want[0] == logits[0].argmax()
    assert want[2] == 3


def test_filters_apply_together():
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0]])
    assert kept(chained(logits, temperature=1.0, top_k=3, top_p=0.9)).tolist() == [[True, True, False, False, False]]
    assert kept(chained(logits, temperature=1.0, top_k=3)).tolist() == [[True] * 3 + [False] * 2]


def test_what_was_said_must_be_told_where_it_is_needed():
    settings = sample.stack([SampleConfig(), SampleConfig(frequency_penalty=0.5)])
    for said in ((), [Said()]):
        with pytest.raises(ValueError, match="frequency_penalty needs what each of 2 rows has said"):
            sample.chain(settings, said)
    sample.chain(sample.stack([SampleConfig(top_k=3)]))


@given(rows, st.sampled_from([1e-300, 1e-38, 1e-9, 1e3, 1e38]))
def test_no_temperature_overflows(logits, t):
    out = chained(logits, temperature=t)
    assert not out.isnan().any()
    assert (out.amax(-1) == 0).all()
    assert kept(out).gather(1, sample.choose(out, torch.full((len(logits),), 0.999))[:, None]).all()


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-24])
def test_a_large_vocabulary_never_yields_what_was_dropped(u):
    out = chained(random.normal(0, (8, 50_000), std=3.0), temperature=1.0, top_p=0.9)
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


@given(rows, st.integers(0, 9))
def test_logprobs_are_of_the_raw_logits_and_the_likeliest_come_first(logits, num_top):
    logits = logits.round()  # many are equal: the lower id comes first
    chosen = logits.argmin(-1)
    told = sample.logprobs(logits, chosen, num_top)
    want = logits.double().log_softmax(-1)
    for i, row in enumerate(want.tolist()):
        assert told.chosen[i].item() == pytest.approx(row[chosen[i]], abs=1e-5)
        assert told.ids[i].tolist() == sorted(range(7), key=lambda j: -logits[i, j].item())[:num_top]
        assert told.values[i].tolist() == pytest.approx([row[j] for j in told.ids[i].tolist()], abs=1e-5)
        alone = sample.logprobs(logits[i : i + 1], chosen[i : i + 1], num_top)
        assert torch.equal(alone.values[0], told.values[i])


def test_settings_out_of_range_are_named():
    wrong = [
        *({"temperature": -1}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"top_k": -1}),
        *({"top_p": 0}, {"top_p": 1.1}, {"typical_p": 0}, {"min_p": 2}, {"repetition_penalty": 0}),
        *({"frequency_penalty": 2.1}, {"presence_penalty": -2.1}, {"logit_bias": {3: 101}}, {"logit_bias": {-1: 1}}),
        *({"bad_words": ((),)}, {"bad_words": ((-1,),)}),
    ]
    for settings in wrong:
        with pytest.raises(ValueError, match=next(iter(settings))):
            sample.check(SampleConfig(**settings))
    assert sample.check(SampleConfig()) == SampleConfig()


@pytest.mark.parametrize("settings", [{"logit_bias": {50: 1.0}}, {"bad_words": ((1, 50),)}])
def test_ids_beyond_the_vocabulary_are_named(settings):
    sample.check(SampleConfig(**settings), vocab_size=51)
    with pytest.raises(ValueError, match="names token 50; the vocabulary has 50"):
        sample.check(SampleConfig(**settings), vocab_size=50)


def test_a_config_goes_through_json_and_an_old_file_loads():
    config = SampleConfig(temperature=0.5, logit_bias={3: -100.0}, bad_words=((1, 2), (3,)))
    assert msgspec.json.decode(msgspec.json.encode(config), type=SampleConfig) == config
    old = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.0, "repetition_penalty": 1.1}
    loaded = msgspec.json.decode(json.dumps(old), type=SampleConfig)
    assert loaded == SampleConfig(0.7, 5, 0.9, 0.0, 1.1)
    assert [s.name for s in sample.stack([loaded]).filters] == ["repetition_penalty", "temperature", "top_k", "top_p"]
