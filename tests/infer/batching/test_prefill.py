"""infer/batching/prefill.py: the order of prefills, and blocks restored from the prefix cache."""

from functools import partial

import pytest
import torch

from slm_fn.infer import engine
from slm_fn.infer.batching import engine_state, prefill
from slm_fn.infer.decoder import Decoder
from slm_fn.infer.engine import EngineConfig
from slm_fn.infer.request import Request
from slm_fn.nn import gpt

CHUNK = 8
CONTEXT = 32


@pytest.fixture
def made(config, model, rough):
    decoder = Decoder(model, partial(gpt.init_cache, config), rough(config))
    settings = EngineConfig(
        max_batch=2, context=CONTEXT, prefill_chunk=CHUNK, prefix_cache_tokens=CHUNK
    )
    return engine.make(decoder, settings)


def prefill_chunk(made, state):
    return prefill.prefill_chunk(made.decoder, state, CHUNK, CONTEXT)


def test_a_prompt_is_complete_after_its_last_chunk(made, model):
    prompt = tuple(range(1, 12))
    state = engine.admit(made, engine.init(made), 0, Request(prompt))
    with torch.inference_mode():
        state, completed = prefill_chunk(made, state)
        assert completed == []
        assert state.sequences[0].num_filled == CHUNK
        state, ((sequence, logits),) = prefill_chunk(made, state)
    assert sequence.num_filled == len(prompt)
    expected = model(made.decoder.params, torch.tensor([prompt]))[0][0, -1:]
    assert torch.allclose(logits, expected, atol=1e-5)


def test_a_restored_prefix_has_the_keys_and_values_that_were_computed(made):
    prompt = tuple(range(1, 12))
    state = engine.admit(made, engine.init(made), 0, Request(prompt))
    with torch.inference_mode():
        state, _ = prefill_chunk(made, state)
        state = engine.admit(made, state, 1, Request(prompt))
        state, restored = prefill.restore_prefix(engine_state.assign_slot(state, 1), 1)
        assert restored.num_filled == restored.num_cached == CHUNK
        computed = engine_state.get_sequence(state, 0)
        for expected, actual in zip(
            engine_state.read_slot(state.slots, computed.slot, 0, CHUNK),
            engine_state.read_slot(state.slots, restored.slot, 0, CHUNK),
            strict=True,
        ):
            assert torch.equal(actual, expected)


def test_requested_prompt_logprobs_are_computed_not_restored(made):
    prompt = tuple(range(1, 12))
    state = engine.admit(made, engine.init(made), 0, Request(prompt))
    with torch.inference_mode():
        state, _ = prefill_chunk(made, state)
        state = engine.admit(made, state, 1, Request(prompt, prompt_logprobs=True))
        _, sequence = prefill.restore_prefix(engine_state.assign_slot(state, 1), 1)
    assert sequence.num_filled == 0
