"""infer/sampling.py: ranges of settings, batches of different settings, exact sampling."""

import json

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm_fn.core import random
from slm_fn.infer import sampling
from slm_fn.infer.filters import TokenHistory
from slm_fn.infer.sampling import SampleConfig

rows = st.lists(
    st.lists(st.floats(-8, 8, width=32), min_size=7, max_size=7), min_size=1, max_size=4
).map(torch.tensor)


def chained(logits, **given):
    config = SampleConfig(**given)
    return sampling.chain([sampling.prepare(config)] * len(logits), [TokenHistory()] * len(logits))(
        logits
    )


def kept(logits):
    return logits > float("-inf")


@given(rows)
def test_temperature_zero_is_greedy_whatever_u_is(logits):
    out = chained(logits, temperature=0.0, top_p=0.3, top_k=2)
    for u in (0.0, 0.5, 0.999999):
        assert torch.equal(sampling.choose(out, torch.full((len(logits),), u)), logits.argmax(-1))


def test_a_greedy_row_has_no_filter_after_the_temperature():
    config = SampleConfig(temperature=0.0, top_k=3, top_p=0.5, typical_p=0.5, min_p=0.1)
    assert sampling.prepare(config) == ((), True)
    assert sampling.prepare(SampleConfig(temperature=1.0)) == ((), False)


def test_greedy_rows_cost_an_argmax_whatever_the_other_rows_are(monkeypatch):
    configs = [
        SampleConfig(temperature=0.0),
        SampleConfig(top_p=0.9),
        SampleConfig(temperature=0.0, logit_bias={3: 9.0}),
    ]
    logits, u = random.normal(0, (3, 50)), torch.tensor([0.1, 0.5, 0.9])
    batch = [sampling.prepare(config) for config in configs]
    expected = sampling.choose(sampling.chain(batch)(logits), u)
    choose = sampling.choose
    rows = []
    monkeypatch.setattr(
        sampling, "choose", lambda logits, u: rows.append(len(logits)) or choose(logits, u)
    )
    assert torch.equal(sampling.draw(batch, (), logits, u), expected)
    assert rows == [1]
    assert expected[0] == logits[0].argmax()
    assert expected[2] == 3


def test_filters_apply_together():
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0]])
    assert kept(chained(logits, temperature=1.0, top_k=3, top_p=0.9)).tolist() == [
        [True, True, False, False, False]
    ]
    assert kept(chained(logits, temperature=1.0, top_k=3)).tolist() == [[True] * 3 + [False] * 2]


def test_histories_are_required_where_a_filter_reads_them():
    configs = [SampleConfig(), SampleConfig(frequency_penalty=0.5)]
    batch = [sampling.prepare(config) for config in configs]
    for histories in ((), [TokenHistory()]):
        with pytest.raises(
            ValueError, match="frequency_penalty needs the token history of each of 2 rows"
        ):
            sampling.chain(batch, histories)
    sampling.chain([sampling.prepare(SampleConfig(top_k=3))])


@given(rows, st.sampled_from([1e-300, 1e-38, 1e-9, 1e3, 1e38]))
def test_no_temperature_overflows(logits, t):
    out = chained(logits, temperature=t)
    assert not out.isnan().any()
    assert (out.amax(-1) == 0).all()
    assert (
        kept(out).gather(1, sampling.choose(out, torch.full((len(logits),), 0.999))[:, None]).all()
    )


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-24])
def test_a_filtered_token_of_a_large_vocabulary_is_never_chosen(u):
    out = chained(random.normal(0, (8, 50_000), std=3.0), temperature=1.0, top_p=0.9)
    assert kept(out).gather(1, sampling.choose(out, torch.full((8,), u))[:, None]).all()


def test_choices_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, float("-inf")]])
    draws = 20_000
    u = random.uniform(0, (draws,))
    counts = torch.bincount(sampling.choose(logits.expand(draws, 4), u), minlength=4)
    expected = logits[0].softmax(-1) * draws
    assert counts[3] == 0
    chi = ((counts[:3] - expected[:3]) ** 2 / expected[:3]).sum().item()
    assert chi < 13.8  # 0.1 % of fair draws exceed it, with 2 degrees of freedom; the key is fixed


@given(rows, st.integers(0, 9))
def test_logprobs_are_of_the_raw_logits_in_falling_order(logits, num_top):
    logits = logits.round()  # many are equal: the lower id comes first
    chosen = logits.argmin(-1)
    result = sampling.logprobs(logits, chosen, num_top)
    expected = logits.double().log_softmax(-1)
    for i, row in enumerate(expected.tolist()):
        assert result.chosen[i].item() == pytest.approx(row[chosen[i]], abs=1e-5)
        assert (
            result.top_ids[i].tolist()
            == sorted(range(7), key=lambda j: -logits[i, j].item())[:num_top]
        )
        assert result.top_values[i].tolist() == pytest.approx(
            [row[j] for j in result.top_ids[i].tolist()], abs=1e-5
        )
        alone = sampling.logprobs(logits[i : i + 1], chosen[i : i + 1], num_top)
        assert torch.equal(alone.top_values[0], result.top_values[i])


def test_settings_out_of_range_are_named():
    wrong = [
        *(
            {"temperature": -1},
            {"temperature": float("nan")},
            {"temperature": float("inf")},
            {"top_k": -1},
        ),
        *({"top_p": 0}, {"top_p": 1.1}, {"typical_p": 0}, {"min_p": 2}, {"repetition_penalty": 0}),
        *(
            {"frequency_penalty": 2.1},
            {"presence_penalty": -2.1},
            {"logit_bias": {3: 101}},
            {"logit_bias": {-1: 1}},
        ),
        *({"bad_words": ((),)}, {"bad_words": ((-1,),)}),
    ]
    for settings in wrong:
        with pytest.raises(ValueError, match=next(iter(settings))):
            sampling.check(SampleConfig(**settings))
    assert sampling.check(SampleConfig()) == SampleConfig()


@pytest.mark.parametrize("settings", [{"logit_bias": {50: 1.0}}, {"bad_words": ((1, 50),)}])
def test_ids_beyond_the_vocabulary_are_named(settings):
    sampling.check(SampleConfig(**settings), vocab_size=51)
    with pytest.raises(ValueError, match="names token 50; the vocabulary has 50"):
        sampling.check(SampleConfig(**settings), vocab_size=50)


def test_a_config_goes_through_json_and_an_old_file_loads():
    config = SampleConfig(temperature=0.5, logit_bias={3: -100.0}, bad_words=((1, 2), (3,)))
    assert msgspec.json.decode(msgspec.json.encode(config), type=SampleConfig) == config
    old = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.0, "repetition_penalty": 1.1}
    loaded = msgspec.json.decode(json.dumps(old), type=SampleConfig)
    assert loaded == SampleConfig(0.7, 5, 0.9, 0.0, 1.1)
    assert [setting.name for setting in sampling.prepare(loaded).settings] == [
        "repetition_penalty",
        "temperature",
        "top_k",
        "top_p",
    ]
