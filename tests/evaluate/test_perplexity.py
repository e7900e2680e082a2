"""evaluate/perplexity.py: every token once, and the same sum as one long window."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm_fn.core.types import LMBatch
from slm_fn.evaluate import perplexity


@given(st.integers(0, 300), st.integers(1, 64), st.data())
def test_windows_score_every_target_once_with_context(num_tokens, context, data):
    stride = data.draw(st.integers(1, context))
    scored = []
    for start, stop, first in perplexity.windows(num_tokens, context, stride):
        assert 0 <= start < first < stop <= num_tokens
        assert stop - 1 - start <= context
        scored += range(first, stop)
    assert scored == list(range(1, num_tokens))


def test_a_text_that_fits_is_one_window(config, model, rough):
    params, ids = rough(config), list(range(20))
    result = perplexity.likelihood(model, params, ids, config.context)
    logits, _ = model(params, torch.tensor([ids[:-1]]))
    want = torch.nn.functional.cross_entropy(logits[0], torch.tensor(ids[1:]), reduction="sum")
    assert result.nats == pytest.approx(want.item(), rel=1e-5)
    assert result.tokens == 19


def test_batches_weigh_by_their_masks(config, model, rough, batch):
    params, rows = rough(config), batch(config)
    full = perplexity.batch_likelihood(model, params, iter([rows]))
    parts = perplexity.batch_likelihood(
        model, params, (LMBatch(rows.tokens[i : i + 1], rows.mask[i : i + 1]) for i in range(4))
    )
    assert full.tokens == parts.tokens == int(rows.mask.sum())
    assert full.nats == pytest.approx(parts.nats, rel=1e-5)


def test_uniform_guessing_over_bytes_is_eight_bits():
    assert perplexity.bits_per_byte(100 * math.log(256), 100) == pytest.approx(8)
