"""lift/dropout_seeds.py: seeds reach the model through any objective, and a row keeps its own."""

from functools import partial

import pytest

from slm_fn.core import random
from slm_fn.core.grads import accumulate, per_example, value_and_grad
from slm_fn.core.types import PairBatch, SeededBatch
from slm_fn.lift.documents import isolate_documents
from slm_fn.lift.dropout_seeds import with_dropout_seeds
from slm_fn.loss.lm import next_token
from slm_fn.loss.preference import dpo, reference_from_batch
from slm_fn.nn import gpt

CONFIG = gpt.ModelConfig(vocab_size=64, dim=32, num_layers=2, ffn_dim=48, context=24, dropout=0.3)
APPLY = partial(gpt.apply, CONFIG)


@pytest.fixture
def rows(batch):
    return batch(CONFIG)


def test_the_model_is_given_the_batch_s_noise(rough, rows, same, purely):
    params, seeds = rough(CONFIG), random.row_seeds(1, 0, 4)
    lifted = purely(with_dropout_seeds(next_token)(APPLY), params, SeededBatch(rows, seeds))
    assert same(lifted, next_token(partial(APPLY, dropout_seeds=seeds))(params, rows))
    quiet, other = (
        next_token(APPLY)(params, rows),
        with_dropout_seeds(next_token)(APPLY)(params, SeededBatch(rows, seeds + 1)),
    )
    assert abs(lifted[0] - quiet[0]) > 1e-3
    assert abs(lifted[0] - other[0]) > 1e-3


def test_parts_and_single_rows_see_the_dropout_of_the_whole(rough, rows, gap):
    params, seeds = rough(CONFIG), random.row_seeds(1, 0, 4)
    loss, seeded = with_dropout_seeds(next_token)(APPLY), SeededBatch(rows, seeds)
    full = value_and_grad(loss)(params, seeded)
    assert gap(full, accumulate(4)(value_and_grad(loss))(params, seeded)) <= 1e-5
    each = per_example(loss)(params, seeded)
    for row in range(4):
        alone = SeededBatch(
            rows._replace(tokens=rows.tokens[row:][:1], mask=rows.mask[row:][:1]), seeds[row:][:1]
        )
        grads = value_and_grad(loss)(params, alone)[1]
        assert (
            gap(grads["blocks"]["ffn"], {k: g[row] for k, g in each["blocks"]["ffn"].items()})
            <= 1e-5
        )


def test_pairs_and_isolated_documents_are_noisy_too(rough, rows):
    params, seeds = rough(CONFIG), random.row_seeds(1, 0, 4)
    pairs = PairBatch(rows, rows._replace(tokens=rows.tokens.flip(0)), rows.mask[:, :2])
    for objective, seeded, apply in (
        (dpo(reference_from_batch), pairs, APPLY),
        (next_token, rows, isolate_documents(0)(APPLY)),
    ):
        loss, aux = with_dropout_seeds(objective)(apply)(params, SeededBatch(seeded, seeds))
        quiet, quiet_aux = objective(apply)(params, seeded)
        assert abs(loss - quiet) > 1e-4
        assert aux["weight"] == quiet_aux["weight"]
