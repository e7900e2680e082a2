"""evaluate/preference.py: accuracy 0.5 at the reference, 1 where the policy improved."""

import pytest
import torch

from slm_fn.core.types import PairBatch
from slm_fn.evaluate.preference import evaluate_preference
from slm_fn.loss.preference import pair_logprobs


def test_the_reference_itself_is_chance_and_unmoved(config, model, rough, batch):
    params = rough(config)
    blank = PairBatch(batch(config, key=1), batch(config, key=2), torch.zeros(4, 2))
    pairs = blank._replace(reference=pair_logprobs(model, params, blank).detach())
    report = evaluate_preference(model, params, [pairs])
    assert report.accuracy == 0.5
    assert report.chosen_change_nats_per_token == 0
    assert report.num_pairs == 4


def test_accuracy_and_change_by_hand(config, model, rough, batch):
    params = rough(config)
    blank = PairBatch(batch(config, key=1), batch(config, key=2), torch.zeros(4, 2))
    logp = pair_logprobs(model, params, blank).detach()
    moved = blank._replace(
        reference=logp - torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [3.0, 4.0]])
    )
    report = evaluate_preference(model, params, [moved])
    assert report.accuracy == pytest.approx(0.5)
    assert report.chosen_change_nats_per_token == pytest.approx(
        6.0 / float(blank.chosen.mask.sum()), rel=1e-4
    )
