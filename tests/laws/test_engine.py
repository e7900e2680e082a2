"""Laws of the engine: a request's tokens and what is told of them are those it would have alone, bit for bit.

Whoever adds an option of the model to MODELS, or a setting to SETTINGS, holds it to all of them.
"""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from slm_fn.core import tree
from slm_fn.infer import engine
from slm_fn.infer.engine import EngineConfig
from slm_fn.infer.request import Request
from slm_fn.infer.sample import SampleConfig
from slm_fn.nn import gpt

SMALL = partial(gpt.ModelConfig, vocab_size=48, dim=32, num_layers=2, num_heads=4, ffn_dim=48, context=80)
MODELS = {
    "rope-gqa": SMALL(num_kv_heads=2, qk_norm=True),
    "alibi-mqa-window": SMALL(num_kv_heads=1, positions="alibi", window=9),
    "learned-mha-softcaps": SMALL(positions="learned", norm="layer", biases="all", attn_softcap=2.0, logit_softcap=3.0),
    "rope-dual-window": SMALL(num_kv_heads=2, ffn="dual", window=20, tied=False),
}
SETTINGS = (
    SampleConfig(temperature=0.0),
    SampleConfig(temperature=0.7, top_k=9),
    SampleConfig(temperature=1.5, top_p=0.8, repetition_penalty=1.3),
    SampleConfig(temperature=1.0, min_p=0.05, frequency_penalty=0.5, presence_penalty=-0.3),
    SampleConfig(temperature=1.2, typical_p=0.7, logit_bias={3: 4.0, 40: -9.0}, bad_words=((7,), (3, 5))),
)
CHUNK, ROWS = 8, 5

prompts = st.builds(
    lambda shared, known, own: (*([1, 9, 8, 7, 6, 5, 4, 3] * 5)[:known], *([2] * shared), *own),
    st.integers(0, 2),
    st.sampled_from([0, 0, 7, 16, 24, 33]),
    st.lists(st.integers(0, 47), min_size=1, max_size=14),
)
requests = st.builds(
    lambda shared, **asked: Request(**asked, shared=min(shared, len(asked["prompt"]))),
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
# Mostly steps and requests: an engine that is always empty proves nothing.
moves = st.lists(st.one_of(requests, requests, st.none(), st.none(), st.integers(0, ROWS - 1)), min_size=8, max_size=24)
"""What the owner of an engine does: a request joins, a step is made, or the row at a place is evicted."""


@pytest.fixture(scope="module", params=MODELS)
def shape(request):
    return MODELS[request.param]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def made(request, shape, rough):
    """An engine, and what it makes of a request alone, without known prefixes."""
    params = tree.cast(rough(shape), request.param)
    parts = partial(gpt.apply, shape), partial(gpt.init_cache, shape), params
    many = engine.make(*parts, EngineConfig(max_batch=ROWS, size=shape.context, chunk=CHUNK, prefix_tokens=6 * CHUNK))
    single = engine.make(*parts, EngineConfig(max_batch=1, size=shape.context, chunk=CHUNK, prefix_tokens=0))

    def alone(asked):
        state, told = engine.admit(single, engine.init(single), 0, asked), []
        while state.rows:
            state, new = engine.step(single, state)
            told += new
        return [_own(token) for token in told]

    return many, alone


def _own(token):
    """What must not depend on others: all but how much of the prompt was known."""
    prompt = token.prompt and token.prompt._replace(cached_tokens=0)
    return token._replace(key=0, prompt=prompt)


def play(made, plan):
    """Follow a plan, then step until all rows ended; returns each request with its tokens."""
    state, told = engine.init(made), {}
    for key, move in enumerate([*plan, *[None] * 1000]):
        if isinstance(move, Request) and len(state.rows) < ROWS:
            state = engine.admit(made, state, key, move)
            told[key] = (move, [])
        elif isinstance(move, int) and move < len(state.rows):
            state = engine.evict(made, state, state.rows[move].key)
        elif move is None:
            state, tokens = engine.step(made, state)
            for token in tokens:
                told[token.key][1].append(token)
        if key >= len(plan) and not state.rows:
            return told.values()
    raise AssertionError("rows are left that do not end")


@given(plan=moves)
@examples(max_examples=max(4, examples().max_examples // 25))
def test_a_request_in_company_is_the_request_alone(made, plan):
    many, alone = made
    for asked, tokens in play(many, plan):
        expected = alone(asked)
        assert [_own(token) for token in tokens] == expected[: len(tokens)]
        assert not tokens or tokens[-1].finish is None or len(tokens) == len(expected)
