"""lift/documents.py: a packed document is read as if it stood alone, by every loss."""

from functools import partial

import pytest
import torch

from slm_fn.core import tree
from slm_fn.core.grads import value_and_grad
from slm_fn.core.types import LMBatch
from slm_fn.lift.documents import isolate_documents
from slm_fn.loss.lm import next_token, sequence_logprob
from slm_fn.nn import gpt

START = 0
TEXTS = [
    [5, 6, 7],
    [START, 9, 8, 7, 6],
    [START],
    [START, 3, 4, 5, 6, 7, 8],
]  # the first one's beginning was cut off
ROW = torch.tensor([[token for text in TEXTS for token in text]])
FIRST, LAST = slice(0, 3), slice(9, 16)


def targets_inside(texts):
    """Mask of a row's targets without each text's first token, whose context isolation hides."""
    return torch.tensor(
        [[float(position > 0) for text in texts for position in range(len(text))][1:]]
    )


def test_logits_are_those_of_the_texts_alone(model, config, rough, purely):
    params = rough(config)
    packed, past = purely(isolate_documents(START)(model), params, ROW)
    assert past is None
    separate = [model(params, torch.tensor([text]))[0][0] for text in TEXTS]
    assert (packed[0] - torch.cat(separate)).abs().max() <= 1e-5


def test_the_loss_of_a_row_is_that_of_its_texts(model, config, rough, gap):
    params, apply = rough(config), isolate_documents(START)(model)
    packed = LMBatch(ROW, targets_inside(TEXTS))
    long = [text for text in TEXTS if len(text) > 1]
    alone = [LMBatch(torch.tensor([text]), torch.ones(1, len(text) - 1)) for text in long]
    of = value_and_grad(next_token(model))
    parts = [(of(params, batch), batch.mask.sum()) for batch in alone]
    weight = sum(count for _, count in parts)
    (loss, aux), grads = value_and_grad(next_token(apply))(params, packed)
    assert aux["weight"] == weight
    assert abs(loss - sum(value * count for ((value, _), _), count in parts) / weight) <= 1e-5
    summed = tree.map(
        lambda *g: sum(x * c / weight for x, (_, c) in zip(g, parts, strict=True)),
        *[g for (_, g), _ in parts],
    )
    assert gap(grads, summed) <= 1e-4
    together = sequence_logprob(apply, params, packed)
    assert (together - sum(sequence_logprob(model, params, batch) for batch in alone)).abs() <= 1e-4


def test_one_text_says_nothing_of_another(model, config, rough):
    params, apply = rough(config), isolate_documents(START)(model)
    changed = ROW.clone()
    changed[0, 4:8] = torch.tensor([20, 21, 22, 23])
    for part in (FIRST, LAST):
        assert torch.equal(apply(params, ROW)[0][:, part], apply(params, changed)[0][:, part])
    assert (model(params, ROW)[0] - model(params, changed)[0])[:, LAST].abs().max() > 1e-2


def test_a_row_of_one_text_is_read_as_before(model, config, rough, batch):
    params, tokens = rough(config), batch(config).tokens.clamp(min=1)
    assert torch.equal(isolate_documents(START)(model)(params, tokens)[0], model(params, tokens)[0])


def test_head_tap_and_backend_reach_the_model(config, rough):
    names, params = [], rough(config)
    apply = isolate_documents(START)(partial(gpt.apply, config, backend="fused"))
    hidden, _ = apply(
        params, ROW, head=lambda weight, x: x, tap=lambda name, x: names.append(name) or x
    )
    assert hidden.shape == (1, 16, config.dim)
    assert "final" in names


def test_a_cache_is_refused(model, config, rough):
    params = rough(config)
    with pytest.raises(ValueError, match="with a cache, use one sequence per text"):
        isolate_documents(START)(model)(params, ROW, gpt.init_cache(config, params, batch_size=1))
