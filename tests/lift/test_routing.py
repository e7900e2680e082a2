"""lift/routing.py: the balance loss is its formula, and the counts of tokens add up."""

from functools import partial

import pytest
import torch

from slm_fn.core import random, tree
from slm_fn.core.grads import accumulate, remat, value_and_grad
from slm_fn.core.types import PairBatch, SeededBatch
from slm_fn.lift.documents import isolate_documents
from slm_fn.lift.dropout_seeds import with_dropout_seeds
from slm_fn.lift.routing import with_balance_loss
from slm_fn.lift.taps import with_activations
from slm_fn.loss.lm import next_token
from slm_fn.loss.preference import dpo, reference_from_batch
from slm_fn.nn import gpt

DROP = gpt.DualConfig(drop=True, capacity_factor=1.0, expert_share=0.25)
CONFIG = gpt.ModelConfig(
    vocab_size=64, dim=32, num_layers=3, ffn_dim=48, context=24, ffn="dual", dual=DROP
)
APPLY = partial(gpt.apply, CONFIG)
NAMES = ("num_lite", "num_expert", "num_dropped")


@pytest.fixture
def given(batch):
    return SeededBatch(batch(CONFIG), random.row_seeds(1, 0, 4))


def test_the_loss_gains_the_balance_and_aux_the_counts(rough, given, purely):
    params, routes = rough(CONFIG), {}
    recording_apply = partial(APPLY, on_aux=routes.__setitem__)
    plain, aux = with_dropout_seeds(next_token)(recording_apply)(params, given)
    value, more = purely(
        with_dropout_seeds(with_balance_loss(0.5, 0.25)(next_token))(APPLY), params, given
    )
    assert list(routes) == ["0/route", "1/route", "2/route"]
    rows = []
    for route in routes.values():
        f, probability = route[..., 1].mean(1), route[..., 0].mean(1)
        rows.append(f * probability / 0.25 + (1 - f) * (1 - probability) / 0.75)
    weights = given.batch.mask.sum(1)
    balance = (torch.stack(rows).mean(0) * weights).sum() / weights.sum()
    assert abs(more["balance"] - balance) < 1e-5
    assert abs(value - plain - 0.5 * balance) < 1e-5
    route = torch.stack(list(routes.values()))
    chosen, dropped = route[..., 1].sum(), route[..., 2].sum()
    assert [more[name].item() for name in NAMES] == [3 * 4 * 12 - chosen, chosen - dropped, dropped]
    assert sum(more[name] for name in NAMES) == 3 * 4 * 12
    assert dropped > 0
    assert {name: more[name] for name in aux} == aux


@pytest.mark.parametrize("training", [False, True])
def test_parts_add_up_and_every_engine_agrees(training, rough, given, gap):
    params = rough(CONFIG)
    lift, batch = (
        (with_dropout_seeds, given) if training else (lambda objective: objective, given.batch)
    )
    loss = lift(with_balance_loss(0.5, 0.25)(next_token))
    full = value_and_grad(loss(APPLY))(params, batch)
    others = [
        accumulate(4)(value_and_grad(loss(APPLY)))(params, batch),
        value_and_grad(loss(APPLY), engine="func")(params, batch),
        value_and_grad(loss(partial(APPLY, lift_block=remat)))(params, batch),
    ]
    for other in others:
        as_floats = (tree.map(torch.Tensor.float, result) for result in (full, other))
        assert gap(*as_floats) <= 1e-5
    assert full[1]["blocks"]["ffn"]["router"].abs().amax(-1).min() > 1e-5


def test_the_gate_is_drawn_to_its_share(rough, given):
    params = rough(CONFIG)
    vg = value_and_grad(
        with_balance_loss(1.0, 0.25)(
            lambda apply: lambda p, b: (0 * next_token(apply)(p, b)[0], {})
        )(APPLY)
    )
    router = params["blocks"]["ffn"]["router"]
    for _ in range(60):
        moved = {
            **params,
            "blocks": {**params["blocks"], "ffn": {**params["blocks"]["ffn"], "router": router}},
        }
        (_, aux), grads = vg(moved, given.batch)
        router = router - 0.3 * grads["blocks"]["ffn"]["router"]
    assert abs(aux["num_expert"] / (3 * 4 * 12) - 0.25) < 0.15


def test_pairs_and_packed_rows_are_counted_too(rough, given, batch):
    params, rows = rough(CONFIG), given.batch
    pairs = PairBatch(rows, batch(CONFIG, key=1), torch.zeros(4, 2))
    _, aux = with_dropout_seeds(with_balance_loss(0.1)(dpo(reference_from_batch)))(APPLY)(
        params, SeededBatch(pairs, given.seeds)
    )
    assert sum(aux[name] for name in NAMES) == 2 * 3 * 4 * 12
    assert aux["weight"] == 4
    _, aux = with_balance_loss(0.1)(next_token)(isolate_documents(0)(APPLY))(params, rows)
    assert sum(aux[name] for name in NAMES) == 3 * 4 * 12
    assert len(with_activations(APPLY)(params, rows.tokens[:, :-1])[1]) == 2 * 3 + 1


def test_a_model_that_does_not_route_is_refused(config, model, rough, batch):
    with pytest.raises(ValueError, match=r"for a dual feed-forward; set model\.ffn to dual"):
        with_balance_loss(0.1)(next_token)(model)(rough(config), batch(config))
