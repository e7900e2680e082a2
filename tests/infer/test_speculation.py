"""infer/drafters.py, speculation.py: n-gram drafts, the context of a draft model, errors."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm_fn.infer import drafters, speculation
from slm_fn.infer.constraints import Constraint
from slm_fn.infer.decoder import Decoder
from slm_fn.infer.drafters import Draft, NgramConfig
from slm_fn.infer.filters import TokenHistory
from slm_fn.infer.request import Request
from slm_fn.infer.sampling import SampleConfig
from slm_fn.infer.speculation import SpeculationStats
from slm_fn.nn import gpt


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 9))
def test_a_draft_is_what_followed_the_longest_ngram(text, num_draft):
    config = NgramConfig(max_ngram=4, min_ngram=1)
    draft = drafters.find_continuation(text, num_draft, config)
    longest = next(
        (
            n
            for n in range(4, 0, -1)
            if any(text[i : i + n] == text[-n:] for i in range(len(text) - n))
        ),
        0,
    )
    if not longest:
        assert draft == ()
        return
    begin = (
        max(i for i in range(len(text) - longest) if text[i : i + longest] == text[-longest:])
        + longest
    )
    full = [*text, *draft]
    assert len(draft) == num_draft
    assert all(full[len(text) + i] == full[begin + i] for i in range(num_draft))


def test_the_latest_occurrence_counts():
    assert drafters.find_continuation([1, 2, 7, 1, 2, 8, 1, 2], 1) == (8,)
    assert drafters.find_continuation([1, 2, 3], 4) == ()
    assert drafters.find_continuation([5], 4) == ()


def test_a_draft_model_stays_within_its_context_and_reuses_its_cache(config, rough):
    calls = []

    def apply(params, tokens, past):
        calls.append((int(past.length), tokens.shape[1]))
        return gpt.apply(config, params, tokens, past)

    decoder = Decoder(apply, partial(gpt.init_cache, config), rough(config))
    drafter = drafters.model_drafter(decoder, context=16, num_draft=3)
    target = drafters.target_of(SampleConfig(temperature=0.0))
    state, draft = drafter.propose(drafter.init(), TokenHistory((1, 2, 3, 4, 5)), target, [1, 2, 3])
    assert calls == [(0, 8), (5, 4), (6, 4)]  # five and their padding, then one by one
    assert len(draft.ids) == 3
    assert torch.allclose(draft.probs.sum(-1), torch.ones(3).double())
    calls.clear()
    rejected = (draft.ids[1] + 1) % config.vocab_size
    state, _ = drafter.propose(
        state, TokenHistory((1, 2, 3, 4, 5), (draft.ids[0], rejected)), target, [4]
    )
    assert calls == [(6, 4)]  # the accepted token is cached, the rejected one is overwritten
    again = drafter.propose(
        drafter.init(), TokenHistory((1, 2, 3, 4, 5), (draft.ids[0], rejected)), target, [4]
    )[1]
    assert (
        drafter.propose(
            state, TokenHistory((1, 2, 3, 4, 5), (draft.ids[0], rejected)), target, [4]
        )[1].ids
        == again.ids
    )
    assert (
        len(drafter.propose(state, TokenHistory(tuple(range(15))), target, [1, 2, 3])[1].ids) == 2
    )
    assert drafter.propose(state, TokenHistory(tuple(range(17))), target, [1, 2, 3])[1] == Draft()


def test_a_pass_without_a_draft_has_an_acceptance_too():
    assert SpeculationStats().acceptance == SpeculationStats().tokens_per_pass == 0.0
    assert SpeculationStats(2, 4, 3, 5) == SpeculationStats(1, 4, 3, 4).add_pass(0, 0, 1)
    assert (
        SpeculationStats(2, 4, 3, 5).acceptance,
        SpeculationStats(2, 4, 3, 5).tokens_per_pass,
    ) == (0.75, 2.5)


@pytest.mark.parametrize("invalid", [{"num_draft": 0}, {"min_ngram": 0}, {"max_ngram": 1}])
def test_settings_out_of_range_are_rejected(invalid, config, rough):
    with pytest.raises(ValueError, match="num_draft >= 1 and 1 <= min_ngram <= max_ngram"):
        drafters.ngram_drafter(NgramConfig(**invalid))
    decoder = Decoder(partial(gpt.apply, config), partial(gpt.init_cache, config), rough(config))
    with pytest.raises(ValueError, match="num_draft must be at least 1"):
        drafters.model_drafter(decoder, 8, num_draft=0)
    constrained = Request((1,), constraint=Constraint(None, torch.ones(1), torch.ones(1)))
    with pytest.raises(ValueError, match="does not support constraints"):
        speculation.generate(decoder, drafters.ngram_drafter(), constrained, 8)
