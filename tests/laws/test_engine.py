"""Laws of the engine: the tokens of a request are those it would have alone, bit for bit.

A new option of the model in MODELS, or a new setting in SETTINGS, is held to all of them.
"""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from slm_fn.core import tree
from slm_fn.infer import engine
from slm_fn.infer.decoder import Decoder
from slm_fn.infer.engine import EngineConfig
from slm_fn.infer.request import Request
from slm_fn.infer.sampling import SampleConfig
from slm_fn.nn import gpt

SMALL = partial(
    gpt.ModelConfig, vocab_size=48, dim=32, num_layers=2, num_heads=4, ffn_dim=48, context=80
)
MODELS = {
    "rope-gqa": SMALL(num_kv_heads=2, qk_norm=True),
    "alibi-mqa-window": SMALL(num_kv_heads=1, positions="alibi", window=9),
    "learned-mha-softcaps": SMALL(
        positions="learned", norm="layer", biases="all", attn_softcap=2.0, logit_softcap=3.0
    ),
    "rope-dual-window": SMALL(num_kv_heads=2, ffn="dual", window=20, tied=False),
}
SETTINGS = (
    SampleConfig(temperature=0.0),
    SampleConfig(temperature=0.7, top_k=9),
    SampleConfig(temperature=1.5, top_p=0.8, repetition_penalty=1.3),
    SampleConfig(temperature=1.0, min_p=0.05, frequency_penalty=0.5, presence_penalty=-0.3),
    SampleConfig(
        temperature=1.2, typical_p=0.7, logit_bias={3: 4.0, 40: -9.0}, bad_words=((7,), (3, 5))
    ),
)
CHUNK, ROWS = 8, 5

prompts = st.builds(
    lambda shared, known, own: (*([1, 9, 8, 7, 6, 5, 4, 3] * 5)[:known], *([2] * shared), *own),
    st.integers(0, 2),
    st.sampled_from([0, 0, 7, 16, 24, 33]),
    st.lists(st.integers(0, 47), min_size=1, max_size=14),
)
requests = st.builds(
    lambda shared, **fields: Request(**fields, num_shared=min(shared, len(fields["prompt"]))),
    shared=st.sampled_from([0, 0, 3, 7, 8, 18]),
    prompt=prompts,
    sampling=st.sampled_from(SETTINGS),
    seed=st.integers(0, 3),
    max_tokens=st.integers(0, 12),
    stop_ids=st.frozensets(st.integers(0, 47), max_size=3),
    logprobs=st.sampled_from([None, 0, 3]),
    prompt_logprobs=st.booleans(),
    constraint=st.none(),
)
# Mostly steps and requests: an engine that is always empty would test nothing.
moves = st.lists(
    st.one_of(requests, requests, st.none(), st.none(), st.integers(0, ROWS - 1)),
    min_size=8,
    max_size=24,
)
"""Operations: admit a request, step (None), or evict the sequence with an index."""


@pytest.fixture(scope="module", params=MODELS)
def shape(request):
    return MODELS[request.param]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def made(request, shape, rough):
    """An engine, and a function from a request to its tokens alone, without a prefix cache."""
    params = tree.cast(rough(shape), request.param)
    parts = partial(gpt.apply, shape), partial(gpt.init_cache, shape), params
    many = engine.make(
        Decoder(*parts),
        EngineConfig(
            max_batch=ROWS,
            context=shape.context,
            prefill_chunk=CHUNK,
            prefix_cache_tokens=6 * CHUNK,
        ),
    )
    single = engine.make(
        Decoder(*parts),
        EngineConfig(
            max_batch=1, context=shape.context, prefill_chunk=CHUNK, prefix_cache_tokens=0
        ),
    )

    def alone(request):
        state = engine.admit(single, engine.init(single), 0, request)
        tokens = []
        while state.sequences:
            state, new_tokens = engine.step(single, state)
            tokens += new_tokens
        return [_comparable(token) for token in tokens]

    return many, alone


def _comparable(token):
    """What must not depend on other requests: all but the number of cached tokens."""
    prompt = token.prompt and token.prompt._replace(num_cached_tokens=0)
    return token._replace(key=0, prompt=prompt)


def play(made, plan, max_active=ROWS):
    """Run the operations, then step until all requests ended; returns each with its tokens."""
    state = engine.init(made)
    results = {}
    for key, move in enumerate([*plan, *[None] * 1000]):
        if isinstance(move, Request) and len(state.sequences) < max_active:
            state = engine.admit(made, state, key, move)
            results[key] = (move, [])
        elif isinstance(move, int) and move < len(state.sequences):
            state = engine.evict(made, state, state.sequences[move].key)
        elif move is None:
            state, tokens = engine.step(made, state)
            for token in tokens:
                results[token.key][1].append(token)
        if key >= len(plan) and not state.sequences:
            return results.values()
    raise AssertionError("some sequences do not end")


@given(plan=moves)
@examples(max_examples=max(4, examples().max_examples // 25))
def test_a_request_in_a_batch_has_the_tokens_it_has_alone(made, plan):
    many, alone = made
    for request, tokens in play(many, plan):
        expected = alone(request)
        assert [_comparable(token) for token in tokens] == expected[: len(tokens)]
        assert not tokens or tokens[-1].finish is None or len(tokens) == len(expected)


WIDE = partial(
    gpt.ModelConfig,
    vocab_size=256,
    dim=128,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    ffn_dim=320,
    context=64,
)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("ffn", ["swiglu", "dual"])
def test_any_number_of_requests_leaves_each_its_tokens(ffn, num_threads, rough):
    """From 100 inputs on, some processors choose the order of a sum by the number of rows."""
    config = WIDE(ffn=ffn)
    parts = partial(gpt.apply, config), partial(gpt.init_cache, config), rough(config)
    many = 13
    requests = [
        Request((3, 5, key), max_tokens=2 + key // 2, seed=key, logprobs=2) for key in range(many)
    ]
    torch.set_num_threads(num_threads)
    try:
        alone = [
            play(engine.make(Decoder(*parts), EngineConfig(max_batch=1, context=64)), [request])
            for request in requests
        ]
        together = play(
            engine.make(Decoder(*parts), EngineConfig(max_batch=many, context=64)),
            requests,
            max_active=many,
        )
    finally:
        torch.set_num_threads(1)
    expected = [[_comparable(token) for token in tokens] for ((_, tokens),) in alone]
    assert [[_comparable(token) for token in tokens] for _, tokens in together] == expected
