"""lift/noise.py: noise reaches the model through any objective, and a row keeps its own."""

from functools import partial

import pytest

from slm_fn.core import random
from slm_fn.core.grads import accumulate, per_example, value_and_grad
from slm_fn.core.types import Noisy, PairBatch
from slm_fn.lift.documents import isolate
from slm_fn.lift.noise import noisy
from slm_fn.loss.lm import next_token
from slm_fn.loss.preference import dpo, recorded
from slm_fn.nn import gpt

CONFIG = gpt.ModelConfig(vocab_size=64, dim=32, num_layers=2, ffn_dim=48, context=24, dropout=0.3)
APPLY = partial(gpt.apply, CONFIG)


@pytest.fixture
def rows(batch):
    return batch(CONFIG)


def test_the_model_is_given_the_batch_s_noise(rough, rows, same, purely):
    params, noise = rough(CONFIG), random.row_noise(1, 0, 4)
    lifted = purely(noisy(next_token)(APPLY), params, Noisy(rows, noise))
    assert same(lifted, next_token(partial(APPLY, noise=noise))(params, rows))
    quiet, other = next_token(APPLY)(params, rows), noisy(next_token)(APPLY)(params, Noisy(rows, noise + 1))
    assert abs(lifted[0] - quiet[0]) > 1e-3
    assert abs(lifted[0] - other[0]) > 1e-3


def test_parts_and_single_rows_see_the_dropout_of_the_whole(rough, rows, gap):
    params, noise = rough(CONFIG), random.row_noise(1, 0, 4)
    loss, given = noisy(next_token)(APPLY), Noisy(rows, noise)
    whole = value_and_grad(loss)(params, given)
    assert gap(whole, accumulate(4)(value_and_grad(loss))(params, given)) <= 1e-5
    each = per_example(loss)(params, given)
    for row in range(4):
        alone = Noisy(rows._replace(tokens=rows.tokens[row:][:1], mask=rows.mask[row:][:1]), noise[row:][:1])
        grads = value_and_grad(loss)(params, alone)[1]
        assert gap(grads["blocks"]["ffn"], {k: g[row] for k, g in each["blocks"]["ffn"].items()}) <= 1e-5


def test_pairs_and_isolated_documents_are_noisy_too(rough, rows):
    params, noise = rough(CONFIG), random.row_noise(1, 0, 4)
    pairs = PairBatch(rows, rows._replace(tokens=rows.tokens.flip(0)), rows.mask[:, :2])
    for objective, given, apply in ((dpo(recorded), pairs, APPLY), (next_token, rows, isolate(0)(APPLY))):
        loss, aux = noisy(objective)(apply)(params, Noisy(given, noise))
        quiet, told = objective(apply)(params, given)
        assert abs(loss - quiet) > 1e-4
        assert aux["weight"] == told["weight"]
