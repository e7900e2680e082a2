"""infer/speculate.py: what n-grams guess, how far a draft model goes, and what is refused."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm_fn.infer import sample, speculate
from slm_fn.infer.filters import Said
from slm_fn.infer.sample import SampleConfig
from slm_fn.infer.speculate import Draft, NgramConfig, Stats
from slm_fn.nn import gpt


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 9))
def test_a_copy_is_what_followed_the_longest_ending(text, num_draft):
    config = NgramConfig(max_ngram=4, min_ngram=1)
    found = speculate.lookup(text, num_draft, config)
    longest = next((n for n in range(4, 0, -1) if any(text[i : i + n] == text[-n:] for i in range(len(text) - n))), 0)
    if not longest:
        assert found == ()
        return
    begin = max(i for i in range(len(text) - longest) if text[i : i + longest] == text[-longest:]) + longest
    whole = [*text, *found]
    assert len(found) == num_draft
    assert all(whole[len(text) + i] == whole[begin + i] for i in range(num_draft))


def test_the_latest_place_counts():
    assert speculate.lookup([1, 2, 7, 1, 2, 8, 1, 2], 1) == (8,)
    assert speculate.lookup([1, 2, 3], 4) == ()
    assert speculate.lookup([5], 4) == ()


def test_a_draft_model_guesses_within_its_context_and_keeps_its_cache(config, rough):
    calls = []

    def apply(params, tokens, past):
        calls.append((int(past.length), tokens.shape[1]))
        return gpt.apply(config, params, tokens, past)

    drafter = speculate.model(apply, partial(gpt.init_cache, config), rough(config), size=16, num_draft=3)
    law = speculate.Law(sample.stack([SampleConfig(temperature=0.0)]))
    state, draft = drafter.propose(drafter.init(), Said((1, 2, 3, 4, 5)), law, [1, 2, 3])
    assert calls == [(0, 8), (5, 4), (6, 4)]  # five and their padding, then one by one
    assert len(draft.ids) == 3
    assert torch.allclose(draft.drawn_from.sum(-1), torch.ones(3).double())
    calls.clear()
    refused = (draft.ids[1] + 1) % config.vocab_size
    state, _ = drafter.propose(state, Said((1, 2, 3, 4, 5), (draft.ids[0], refused)), law, [4])
    assert calls == [(6, 4)]  # the accepted guess is there, what was read behind it is forgotten
    again = drafter.propose(drafter.init(), Said((1, 2, 3, 4, 5), (draft.ids[0], refused)), law, [4])[1]
    assert drafter.propose(state, Said((1, 2, 3, 4, 5), (draft.ids[0], refused)), law, [4])[1].ids == again.ids
    assert len(drafter.propose(state, Said(tuple(range(15))), law, [1, 2, 3])[1].ids) == 2
    assert drafter.propose(state, Said(tuple(range(17))), law, [1, 2, 3])[1] == Draft()


def test_a_pass_that_guesses_nothing_has_an_acceptance_too():
    assert Stats().acceptance == Stats().tokens_per_pass == 0.0
    assert Stats(2, 4, 3, 5) == Stats(1, 4, 3, 4).plus(0, 0, 1)
    assert (Stats(2, 4, 3, 5).acceptance, Stats(2, 4, 3, 5).tokens_per_pass) == (0.75, 2.5)


@pytest.mark.parametrize("wrong", [{"num_draft": 0}, {"min_ngram": 0}, {"max_ngram": 1}])
def test_settings_out_of_range_are_refused(wrong, config, rough):
    with pytest.raises(ValueError, match="num_draft >= 1 and 1 <= min_ngram <= max_ngram"):
        speculate.ngram(NgramConfig(**wrong))
    with pytest.raises(ValueError, match="num_draft must be at least 1"):
        speculate.model(partial(gpt.apply, config), partial(gpt.init_cache, config), rough(config), 8, num_draft=0)
