"""infer/batching/batch_sizes.py: kernels that depend on the number of rows are avoided."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm_fn.infer import engine
from slm_fn.infer.batching import batch_sizes
from slm_fn.infer.decoder import Decoder
from slm_fn.infer.engine import EngineConfig
from slm_fn.infer.request import Request
from slm_fn.infer.sampling import SampleConfig
from slm_fn.nn import gpt


def any_number(num_rows):
    """A kernel that treats all rows the same."""
    return torch.zeros(num_rows)


def from_eight_on(num_rows):
    """A kernel that from eight rows on sums in another order."""
    return torch.full((num_rows,), float(num_rows >= 8))


def tiles_of_six(num_rows):
    """A kernel of six rows at a time; one or two remaining rows are summed in another order."""
    left = num_rows % 6
    other = torch.arange(num_rows) >= num_rows - left
    return other.float() if left in (1, 2) else torch.zeros(num_rows)


KERNELS = {
    any_number: {1: (4,), 4: (4,), 5: (4, 8), 8: (4, 8), 13: (4, 8, 12, 16)},
    from_eight_on: {4: (4,), 5: (4,), 8: (4,), 13: (4,)},
    tiles_of_six: {4: (4,), 5: (4, 12), 12: (4, 12), 13: (4, 12, 16), 17: (4, 12, 16, 24)},
}


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_sizes_that_give_other_bits_are_excluded(kernel):
    kinds_of_logits = torch.randn(
        batch_sizes.NUM_VARIANTS, 5, generator=torch.Generator().manual_seed(0)
    )

    def logits_of(kinds):
        return kinds_of_logits[kinds] + 1e-3 * kernel(len(kinds))[:, None]

    sizes = {}
    for max_batch in KERNELS[kernel]:
        sizes[max_batch] = batch_sizes.measure(logits_of, max_batch)
    assert sizes == KERNELS[kernel]


@given(st.sets(st.integers(1, 20), min_size=1).map(sorted), st.integers(0, 40))
def test_passes_hold_all_rows_and_only_the_last_is_padded(sizes, num_rows):
    passes = batch_sizes.split(sizes, num_rows)
    assert set(passes) <= set(sizes)
    assert sum(passes) == batch_sizes.num_padded_rows(sizes, num_rows) >= num_rows
    assert sum(passes[:-1]) < max(num_rows, 1)
    assert num_rows > sizes[-1] or len(passes) <= 1
    assert batch_sizes.num_slots(sizes, num_rows) >= max(num_rows, sum(passes))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_an_engine_decodes_around_such_kernels(kernel, config, model, rough):
    rows_of_passes = []

    def apply(params, tokens, past, **given):
        logits, past = model(params, tokens, past, **given)
        if tokens.shape[1] == 1:
            rows_of_passes.append(len(tokens))
            logits = logits + 0.5 * kernel(len(tokens))[:, None, None] * torch.arange(
                logits.shape[-1]
            )
        return logits, past

    def tokens_of(requests, max_batch):
        decoder = Decoder(apply, partial(gpt.init_cache, config), rough(config))
        made = engine.make(decoder, EngineConfig(max_batch=max_batch, context=32))
        rows_of_passes.clear()
        state = engine.init(made)
        for key, request in enumerate(requests):
            state = engine.admit(made, state, key, request)
        replies = [[] for _ in requests]
        while state.sequences:
            state, tokens = engine.step(made, state)
            for token in tokens:
                replies[token.key].append((token.id, token.logprob))
        assert set(rows_of_passes) <= set(made.batch_sizes)
        return replies

    greedy = SampleConfig(temperature=0.0)
    requests = [
        Request((key + 1,), greedy, max_tokens=2 + key // 2, logprobs=0) for key in range(13)
    ]
    alone = [tokens_of([request], 1)[0] for request in requests]
    assert tokens_of(requests, 13) == alone
