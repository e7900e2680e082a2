"""Laws of every loss. A new loss joins LOSSES in one line and is held to all of them."""

from functools import partial

import pytest
import torch

from slm_fn.core import random, tree
from slm_fn.core.grads import accumulate, per_example, remat, value_and_grad
from slm_fn.core.types import LMBatch, PairBatch
from slm_fn.loss import lm
from slm_fn.loss.lm import next_token, next_token_from_logits
from slm_fn.loss.preference import dpo, pair_logprobs, reference_from_batch
from slm_fn.nn import gpt

CONFIG = gpt.ModelConfig(
    vocab_size=48, dim=32, num_layers=1, num_heads=4, num_kv_heads=2, ffn_dim=48, context=24
)
APPLY = partial(gpt.apply, CONFIG)
REFERENCE = tree.map(lambda w: w + 0.05, gpt.init(CONFIG, key=9))


def texts(draw):
    rows = draw(CONFIG, rows=6, length=11)
    return rows._replace(
        mask=rows.mask * random.uniform(4, rows.mask.shape)
    )  # weights need not be 0 or 1


def pairs(draw):
    chosen, rejected = draw(CONFIG, rows=6, length=11, key=1), draw(CONFIG, rows=6, length=9, key=2)
    return PairBatch(chosen, rejected, -30 + random.normal(3, (6, 2)))


def model_reference(apply, params):
    """The reference log-probabilities, computed by a second model that is not trained."""
    return lambda batch: pair_logprobs(apply, params, batch).detach()


LOSSES = {
    "next_token": (next_token(APPLY), texts),
    "next_token-plain": (next_token(APPLY, chunked=False), texts),
    "next_token-smoothed": (next_token(APPLY, smoothing=0.1), texts),
    "next_token_from_logits": (next_token_from_logits(APPLY), texts),
    "dpo-frozen": (dpo(model_reference(APPLY, REFERENCE))(APPLY), pairs),
    "dpo-recorded-nll": (dpo(reference_from_batch, beta=0.5, nll_weight=0.3)(APPLY), pairs),
}


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch):
    monkeypatch.setattr(lm, "CHUNK_TOKENS", 7)  # divides none of the numbers of targets here


@pytest.fixture(params=LOSSES)
def case(request, rough, batch):
    """(loss, parameters, batch)"""
    loss, draw = LOSSES[request.param]
    return loss, rough(CONFIG), draw(batch)


@pytest.mark.parametrize("engine", ["autograd", "func"])
@pytest.mark.parametrize("num_micro", [2, 3, 6])
def test_accumulated_parts_are_the_whole_batch(case, num_micro, engine, gap, purely):
    loss, params, rows = case
    vg = value_and_grad(loss, engine)
    full, parts = vg(params, rows), purely(accumulate(num_micro)(vg), params, rows)
    ((value, aux), grads), ((want, want_aux), want_grads) = parts, full
    assert gap((value, grads), (want, want_grads)) <= 1e-6
    assert gap(aux, want_aux) <= 1e-5  # rewards are small differences of large log-probabilities


def test_rows_without_a_target_add_nothing_to_texts(batch, rough, gap):
    rows, params = texts(batch), rough(CONFIG)
    empty = LMBatch(rows.tokens.flip(0), torch.zeros_like(rows.mask))
    padded = tree.map(lambda a, b: torch.cat([a, b]), rows, empty)
    for name in ("next_token", "next_token-plain", "next_token_from_logits"):
        vg = value_and_grad(LOSSES[name][0])
        assert gap(vg(params, padded), vg(params, rows)) <= 1e-6
        assert gap(accumulate(2)(vg)(params, padded), vg(params, rows)) <= 1e-6
        (value, aux), grads = vg(params, empty)
        assert value == aux["weight"] == tree.global_norm(grads) == 0


def test_both_engines_agree(case, gap, purely):
    loss, params, rows = case
    one, other = (
        purely(value_and_grad(loss, engine), params, rows) for engine in ("autograd", "func")
    )
    assert gap(one, other) <= 1e-6
    assert not any(x.requires_grad for x in tree.leaves((one, other)))


def test_gradients_are_slopes(case):
    # An oracle that shares no code with any engine: a central difference in float64.
    loss, params, rows = case
    params, rows = tree.cast(params, torch.float64), tree.cast(rows, torch.float64)
    direction = tree.map_with_path(
        params, lambda path, w: random.normal(random.fold_in(1, path), w.shape).double()
    )
    _, grads = value_and_grad(loss)(params, rows)
    slope = sum(
        (g * d).sum() for g, d in zip(tree.leaves(grads), tree.leaves(direction), strict=True)
    )
    far = [
        loss(tree.map(lambda w, d, h=h: w + h * d, params, direction), rows)[0]
        for h in (2e-3, -2e-3, 1e-3, -1e-3)
    ]
    richardson = (4 * (far[2] - far[3]) / 2e-3 - (far[0] - far[1]) / 4e-3) / 3
    assert abs(slope - richardson) < 2e-3 * abs(slope)


def test_gradients_commute_with_vmap_over_parameters(case, rough, gap):
    loss, _, rows = case
    members = [rough(CONFIG, key) for key in range(3)]
    together = torch.func.vmap(value_and_grad(loss, "func"), in_dims=(0, None))(
        tree.stack(*members), rows
    )
    apart = tree.stack(*(value_and_grad(loss)(member, rows) for member in members))
    assert gap(together, apart) <= 1e-5


def test_per_example_gradients_are_those_of_single_rows(case, gap):
    loss, params, rows = case
    together = per_example(loss)(params, rows)
    apart = [
        value_and_grad(loss)(params, tree.map(lambda x, i=i: x[i : i + 1], rows))[1]
        for i in range(6)
    ]
    assert gap(together, tree.stack(*apart)) <= 1e-5


def test_remat_of_a_whole_loss_changes_no_number(case, same):
    loss, params, rows = case
    assert same(value_and_grad(remat(loss))(params, rows), value_and_grad(loss)(params, rows))


# Dynamo itself instantiates the autograd.Function that it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_is_eager(case, no_shape_checks, gap):
    loss, params, rows = case
    vg = value_and_grad(loss, "func")
    assert (
        gap(torch.compile(vg, backend="aot_eager", fullgraph=True)(params, rows), vg(params, rows))
        <= 1e-6
    )
