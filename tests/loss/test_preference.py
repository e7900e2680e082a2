"""DPO against its formula written out, at the reference, and by the sign of its gradient."""

import math

import pytest
import torch

from slm_fn.core import tree
from slm_fn.core.grads import value_and_grad
from slm_fn.core.types import PairBatch
from slm_fn.loss.preference import dpo, pair_logprobs, reference_from_batch


@pytest.fixture
def pairs(config, batch):
    chosen, rejected = (
        batch(config, rows=4, length=9, key=1),
        batch(config, rows=4, length=12, key=2),
    )
    return PairBatch(chosen, rejected, torch.zeros(4, 2))


def model_reference(apply, params):
    """The reference log-probabilities, computed by a second model that is not trained."""
    return lambda batch: pair_logprobs(apply, params, batch).detach()


def logp_by_hand(model, params, side):
    logp = model(params, side.tokens[:, :-1])[0].double().log_softmax(-1)
    return (logp.gather(-1, side.tokens[:, 1:, None]).squeeze(-1) * side.mask).sum(-1)


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_at_the_reference_the_loss_is_ln_2(config, rough, model, pairs, beta):
    params = rough(config)
    value, aux = dpo(model_reference(model, params), beta)(model)(params, pairs)
    assert abs(value - math.log(2)) < 1e-7
    assert aux["reward_margin"] == aux["chosen_logp_change"] == aux["rejected_logp_change"] == 0
    assert aux["weight"] == 4


@pytest.mark.parametrize("nll_weight", [0.0, 0.7])
def test_the_loss_is_its_formula(config, rough, model, pairs, nll_weight):
    params, reference = rough(config, 0), rough(config, 1)
    value, aux = dpo(model_reference(model, reference), 0.3, nll_weight)(model)(params, pairs)
    now, then = ([logp_by_hand(model, p, side) for side in pairs[:2]] for p in (params, reference))
    margin = 0.3 * ((now[0] - then[0]) - (now[1] - then[1]))
    tokens = [side.mask.sum(-1) for side in pairs[:2]]
    want = torch.log1p(torch.exp(-margin)).mean() - nll_weight * (now[0] / tokens[0]).mean()
    assert abs(value - want) < 1e-4 * want
    expected = {
        "reward_accuracy": (margin > 0).double().mean(),
        "reward_margin": margin.mean(),
        "chosen_logp_change": ((now[0] - then[0]) / tokens[0]).mean(),
        "rejected_logp_change": ((now[1] - then[1]) / tokens[1]).mean(),
    }
    for name, number in expected.items():
        assert aux[name] == pytest.approx(number.item(), abs=1e-4), name


def test_a_reference_model_equals_recorded_log_probabilities(config, rough, model, pairs, same):
    params, reference = rough(config, 0), rough(config, 1)
    with_reference = pairs._replace(reference=pair_logprobs(model, reference, pairs))
    of = [
        value_and_grad(dpo(ref)(model))(params, with_reference)
        for ref in (model_reference(model, reference), reference_from_batch)
    ]
    assert same(of[0], of[1])
    assert not model_reference(model, tree.map(lambda w: w.clone().requires_grad_(), reference))(
        pairs
    ).requires_grad


def test_the_gradient_raises_the_chosen_and_lowers_the_rejected(config, rough, model, pairs):
    params = rough(config)
    _, grads = value_and_grad(dpo(model_reference(model, params), beta=1.0)(model))(params, pairs)
    size = tree.global_norm(grads)
    moved = tree.map(lambda w, g: w - 0.05 * g / size, params, grads)
    value, aux = dpo(model_reference(model, params), beta=1.0)(model)(moved, pairs)
    assert value < math.log(2)
    assert aux["reward_margin"] > 0
    assert aux["chosen_logp_change"] > 0 > aux["rejected_logp_change"]


def test_swapping_the_sides_turns_the_margin_round(config, rough, model, pairs):
    params, reference = rough(config, 0), rough(config, 1)
    swapped = PairBatch(pairs.rejected, pairs.chosen, pairs.reference.flip(-1))
    of = [
        dpo(model_reference(model, reference))(model)(params, batch)[1]
        for batch in (pairs, swapped)
    ]
    assert of[0]["reward_margin"] == pytest.approx(-of[1]["reward_margin"].item())
    assert of[0]["chosen_logp_change"] == of[1]["rejected_logp_change"]


def test_nll_weight_holds_the_chosen_likelihood_up(config, rough, model, pairs):
    params = rough(config)
    changes = []
    for nll_weight in (0.0, 1.0):
        loss = dpo(model_reference(model, params), 0.1, nll_weight)(model)
        _, grads = value_and_grad(loss)(params, pairs)
        moved = tree.map(lambda w, g: w - 0.01 * g, params, grads)
        changes.append(loss(moved, pairs)[1]["chosen_logp_change"].item())
    assert changes[1] > changes[0] + 1e-3
