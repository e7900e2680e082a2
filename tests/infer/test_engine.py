"""infer/engine.py: the order of prefills, the prefix cache, slots, errors; equality is a law."""

from functools import partial

import pytest
import torch

from slm_fn.core import tree
from slm_fn.infer import engine, generate
from slm_fn.infer.batching import batch_sizes
from slm_fn.infer.decoder import Decoder
from slm_fn.infer.engine import EngineConfig, EngineFull
from slm_fn.infer.request import ContextOverflow, Request
from slm_fn.infer.sampling import SampleConfig
from slm_fn.nn import gpt

GREEDY = SampleConfig(temperature=0.0)
LONG = tuple(range(1, 30))


@pytest.fixture
def parts(config, model, rough):
    return model, partial(gpt.init_cache, config), rough(config)


@pytest.fixture
def made(parts):
    return engine.make(
        Decoder(*parts),
        EngineConfig(max_batch=3, context=32, prefill_chunk=8, prefix_cache_tokens=16),
    )


def run(made, state, max_steps=100):
    """Step until no sequence is active; returns the state and the tokens of each step."""
    tokens_by_step = []
    while state.sequences and len(tokens_by_step) < max_steps:
        state, tokens = engine.step(made, state)
        tokens_by_step.append(tokens)
    return state, tokens_by_step


def finish(made, *requests):
    """The tokens of requests that are admitted together, in the order of the requests."""
    state = engine.init(made)
    for key, request in enumerate(requests):
        state = engine.admit(made, state, key, request)
    _, tokens_by_step = run(made, state)
    replies = [[] for _ in requests]
    for tokens in tokens_by_step:
        for token in tokens:
            replies[token.key].append(token)
    return replies


def test_a_long_prompt_delays_no_other_sequence(made):
    state = engine.admit(made, engine.init(made), 0, Request((5,), max_tokens=20))
    state, _ = engine.step(made, state)
    state = engine.admit(made, state, 1, Request(LONG, max_tokens=2))
    state = engine.admit(made, state, 2, Request((6, 7), max_tokens=20))
    keys = []
    for _ in range(5):
        state, tokens = engine.step(made, state)
        keys.append([token.key for token in tokens])
        filled = [each.num_filled for each in state.sequences if each.key == 1]
        assert sum(filled) <= 8 * len(keys)
    # 8 tokens per step: the first block of the long prompt, then the short prompt, then the rest
    # of the long one in three steps.
    assert keys[0] == [0]
    assert keys[1] == [0, 2]
    assert keys[2:] == [[0, 2], [0, 2], [0, 2, 1]]


def test_a_shared_prefix_is_computed_once(parts):
    num_tokens_by_call = []

    def recording(params, tokens, past, **options):
        num_tokens_by_call.append(tokens.shape[1])
        return parts[0](params, tokens, past, **options)

    made = engine.make(
        Decoder(recording, *parts[1:]),
        EngineConfig(max_batch=3, context=32, prefill_chunk=8, prefix_cache_tokens=16),
    )
    rows = finish(
        made, *(Request((*range(1, 17), own), GREEDY, max_tokens=1) for own in (20, 21, 22))
    )
    # They are prefilled in turn: what one has computed is cached for the next one.
    assert sum(row[0].prompt.num_cached_tokens for row in rows) == 2 * 16
    assert len(num_tokens_by_call) == 2 + 3
    again = [
        Request(tuple(range(1, 17)), GREEDY, max_tokens=1, prompt_logprobs=echo)
        for echo in (False, True)
    ]
    assert [row[0].prompt.num_cached_tokens for row in finish(made, *again)] == [0, 0]


def test_a_short_shared_prefix_is_computed_once(made):
    rows = finish(
        made,
        *(
            Request((1, 2, 3, *[own] * 9), GREEDY, max_tokens=1, num_shared=3)
            for own in (20, 21, 22)
        ),
    )
    assert [row[0].prompt.num_cached_tokens for row in rows] == [0, 3, 3]
    # Of the same prompt the chunk after it is cached too.
    rows = finish(made, *[Request((1, 2, 3, *[20] * 9), GREEDY, max_tokens=1, num_shared=3)] * 2)
    assert sum(row[0].prompt.num_cached_tokens for row in rows) == 3 + 8


def test_the_least_recently_used_prefix_is_dropped_when_the_cache_is_full(made):
    state = engine.init(made)
    num_cached = []
    # The cache holds two: 2 is the least recently used when 3 is added.
    for key, first in enumerate((1, 2, 1, 3, 1, 2)):
        state = engine.admit(made, state, key, Request((*[first] * 8, 9), max_tokens=1))
        state, tokens_by_step = run(made, state)
        ((token,),) = [tokens for tokens in tokens_by_step if tokens]
        num_cached.append(token.prompt.num_cached_tokens)
        assert len(state.prefix_cache.entries) <= 2
    assert num_cached == [0, 0, 8, 0, 8, 0]


def test_an_evicted_request_frees_its_slot_at_once(made):
    state = engine.init(made)
    for key in range(3):
        state = engine.admit(made, state, key, Request((key + 1,), max_tokens=9))
    with pytest.raises(EngineFull):
        engine.admit(made, state, 3, Request((1,)))
    state, _ = engine.step(made, state)
    state = engine.admit(made, engine.evict(made, state, 0), 3, Request((1,)))
    assert [row.key for row in state.sequences] == [1, 2, 3]
    assert sorted(row.slot for row in state.sequences) == [-1, 0, 1]
    assert engine.evict(made, state, 99) is state


def test_an_invalid_request_is_rejected_before_anything_is_computed(made):
    state = engine.admit(made, engine.init(made), 0, Request((1,)))
    with pytest.raises(ContextOverflow, match="maximum context length is 32 tokens"):
        engine.admit(made, state, 1, Request((1,) * 32))
    for request, error in (
        (Request(()), "at least one token"),
        (Request((64,)), "token 64; the vocabulary has 64"),
        (Request((-1,)), "token -1"),
        (Request((1,), SampleConfig(top_p=2.0)), "top_p"),
        (Request((1,), max_tokens=-1), "max_tokens"),
        (Request((1,), num_shared=2), "num_shared must be from 0 to the prompt's 1 tokens, got 2"),
    ):
        with pytest.raises(ValueError, match=error):
            engine.admit(made, state, 1, request)
    with pytest.raises(ValueError, match="key 0 is active"):
        engine.admit(made, state, 0, Request((1,)))
    with pytest.raises(ValueError, match="prefill_chunk must be at least 1"):
        engine.make(made.decoder, EngineConfig(prefill_chunk=0))


def test_the_finish_reason(made):
    free, full, none = finish(
        made,
        Request((3,), GREEDY, max_tokens=6),
        Request(LONG, GREEDY, max_tokens=9),
        Request((3,), max_tokens=0),
    )
    assert [token.finish for token in free] == [None] * 5 + ["length"]
    assert [token.finish for token in full] == [None, None, "length"]
    assert [(token.id, token.finish) for token in none] == [(None, "length")]
    stop = free[2].id
    (cut,) = finish(made, Request((3,), GREEDY, max_tokens=6, stop_ids=frozenset([stop])))
    assert cut[-1].finish == "stop"
    assert [token.id for token in cut] == [token.id for token in free][
        : [t.id for t in free].index(stop) + 1
    ]


def test_logprobs_are_the_models_own(made, parts):
    request = Request(
        LONG[:12], SampleConfig(temperature=3.0, top_k=2), 1, 4, logprobs=3, prompt_logprobs=True
    )
    quiet = request._replace(logprobs=None, prompt_logprobs=False)
    tokens, without = finish(made, request, quiet)
    ids = [*request.prompt, *(token.id for token in tokens)]
    logs = parts[0](parts[2], torch.tensor([ids]))[0][0].log_softmax(-1)
    logprobs = [*tokens[0].prompt.logprobs, *tokens]
    assert len(logprobs) == len(ids) - 1
    for row, token, one in zip(logs, ids[1:], logprobs, strict=False):
        assert one.logprob == pytest.approx(row[token].item(), abs=1e-5)
        assert [i for i, _ in one.top] == row.topk(3).indices.tolist()
        assert [log for _, log in one.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-5)
    assert all((token.logprob, token.top) == (None, ()) for token in without)
    assert without[0].prompt.logprobs == ()
    assert [token.id for token in without] == [token.id for token in tokens]


def test_a_lifted_step_may_own_the_slots(parts):
    """A recorded graph copies its inputs once, and returns its own buffers from then on."""
    buffers = []

    def capture(step):
        def captured(slots, batch):
            if not buffers:
                buffers.append(tree.map(torch.clone, slots))
            if slots is not buffers[0]:
                tree.map(lambda own, new: own.copy_(new), buffers[0], slots)
            return buffers[0], step(buffers[0], batch)[1]

        return captured

    config = EngineConfig(max_batch=3, context=32, prefill_chunk=8)
    requests = [
        Request((3, 4), GREEDY, max_tokens=9),
        Request(LONG, GREEDY, max_tokens=3),
        Request((7,), max_tokens=6),
    ]
    owned = finish(engine.make(Decoder(*parts), config, lift=capture), *requests)
    assert owned == finish(engine.make(Decoder(*parts), config), *requests)


def test_a_step_sees_few_shapes(parts):
    shapes = set()

    def record_shapes(step):
        def recorded(slots, batch):
            shapes.add((len(batch["tokens"]), len(batch["keys"])))
            return step(slots, batch)

        return recorded

    made = engine.make(
        Decoder(*parts), EngineConfig(max_batch=6, context=32, prefill_chunk=8), lift=record_shapes
    )
    finish(made, *(Request((1,) * n, max_tokens=12) for n in range(1, 7)))
    assert shapes == {(4, 64), (batch_sizes.split(made.batch_sizes, 6)[0], 64)}


def test_scripts_decode_as_the_engine_does(made, parts):
    requests = [
        Request(LONG[:n], SampleConfig(temperature=1.3), seed=n, max_tokens=9) for n in (1, 5, 3)
    ]
    for request, tokens in zip(requests, finish(made, *requests), strict=True):
        assert [token.id for token in tokens] == list(
            generate.generate(Decoder(*parts), request, context=32)
        )
