"""infer/engine.py: who is read, decoded and let go when; what is known; what is refused. Equality is a law."""

from functools import partial

import pytest
import torch

from slm_fn.core import tree
from slm_fn.infer import decode, engine
from slm_fn.infer.engine import EngineConfig, Full
from slm_fn.infer.request import ContextOverflow, Request
from slm_fn.infer.sample import SampleConfig
from slm_fn.nn import gpt

GREEDY = SampleConfig(temperature=0.0)
LONG = tuple(range(1, 30))


@pytest.fixture
def parts(config, model, rough):
    return model, partial(gpt.init_cache, config), rough(config)


@pytest.fixture
def made(parts):
    return engine.make(*parts, EngineConfig(max_batch=3, size=32, chunk=8, prefix_tokens=16))


def run(made, state, steps=100):
    """Step until no row is left; returns the state and each step's tokens."""
    told = []
    while state.rows and len(told) < steps:
        state, tokens = engine.step(made, state)
        told.append(tokens)
    return state, told


def finish(made, *requests):
    """The tokens of some requests that join together, by their key."""
    state = engine.init(made)
    for key, request in enumerate(requests):
        state = engine.admit(made, state, key, request)
    _, told = run(made, state)
    return [[token for tokens in told for token in tokens if token.key == key] for key in range(len(requests))]


def test_a_long_prompt_stalls_nobody(made):
    state = engine.admit(made, engine.init(made), 0, Request((5,), max_tokens=20))
    state, _ = engine.step(made, state)
    state = engine.admit(made, state, 1, Request(LONG, max_tokens=2))
    state = engine.admit(made, state, 2, Request((6, 7), max_tokens=20))
    keys = []
    for _ in range(5):
        state, tokens = engine.step(made, state)
        keys.append([token.key for token in tokens])
        assert sum(row.filled for row in state.rows if row.key == 1) <= 8 * len(keys)
    # 8 tokens a step: the long one's first piece, then the short one takes its turn, then the rest in three steps.
    assert keys[0] == [0]
    assert keys[1] == [0, 2]
    assert keys[2:] == [[0, 2], [0, 2], [0, 2, 1]]


def test_a_shared_beginning_is_read_once(parts):
    told = []

    def watching(params, tokens, past, **given):
        told.append(tokens.shape[1])
        return parts[0](params, tokens, past, **given)

    made = engine.make(watching, *parts[1:], EngineConfig(max_batch=3, size=32, chunk=8, prefix_tokens=16))
    rows = finish(made, *(Request((*range(1, 17), own), GREEDY, max_tokens=1) for own in (20, 21, 22)))
    # They take turns: what one has read the next one knows.
    assert sum(row[0].prompt.cached_tokens for row in rows) == 2 * 16
    assert len(told) == 2 + 3
    again = [Request(tuple(range(1, 17)), GREEDY, max_tokens=1, prompt_logprobs=echo) for echo in (False, True)]
    assert [row[0].prompt.cached_tokens for row in finish(made, *again)] == [0, 0]


def test_a_short_beginning_that_is_named_is_read_once(made):
    rows = finish(made, *(Request((1, 2, 3, *[own] * 9), GREEDY, max_tokens=1, shared=3) for own in (20, 21, 22)))
    assert [row[0].prompt.cached_tokens for row in rows] == [0, 3, 3]
    # Of the very same prompt the chunk behind it is known too, to whoever comes second.
    rows = finish(made, *[Request((1, 2, 3, *[20] * 9), GREEDY, max_tokens=1, shared=3)] * 2)
    assert sum(row[0].prompt.cached_tokens for row in rows) == 3 + 8


def test_what_was_known_is_forgotten_where_there_is_no_room(made):
    state, found = engine.init(made), []
    for key, first in enumerate((1, 2, 1, 3, 1, 2)):  # room for two: 2 is the least recently used when 3 comes
        state = engine.admit(made, state, key, Request((*[first] * 8, 9), max_tokens=1))
        state, told = run(made, state)
        ((token,),) = [tokens for tokens in told if tokens]
        found.append(token.prompt.cached_tokens)
        assert len(state.known.pieces) <= 2
    assert found == [0, 0, 8, 0, 8, 0]


def test_whoever_leaves_frees_a_row_at_once(made):
    state = engine.init(made)
    for key in range(3):
        state = engine.admit(made, state, key, Request((key + 1,), max_tokens=9))
    with pytest.raises(Full):
        engine.admit(made, state, 3, Request((1,)))
    state, _ = engine.step(made, state)
    state = engine.admit(made, engine.evict(made, state, 0), 3, Request((1,)))
    assert [row.key for row in state.rows] == [1, 2, 3]
    assert sorted(row.slot for row in state.rows) == [-1, 0, 1]
    assert engine.evict(made, state, 99) is state


def test_what_cannot_be_done_is_refused_before_it_is_begun(made):
    state = engine.admit(made, engine.init(made), 0, Request((1,)))
    with pytest.raises(ContextOverflow, match="maximum context length is 32 tokens"):
        engine.admit(made, state, 1, Request((1,) * 32))
    for wrong, why in (
        (Request(()), "at least one token"),
        (Request((64,)), "token 64; the vocabulary has 64"),
        (Request((-1,)), "token -1"),
        (Request((1,), SampleConfig(top_p=2.0)), "top_p"),
        (Request((1,), max_tokens=-1), "max_tokens"),
        (Request((1,), shared=2), "shared must be from 0 to the prompt's 1 tokens, got 2"),
    ):
        with pytest.raises(ValueError, match=why):
            engine.admit(made, state, 1, wrong)
    with pytest.raises(ValueError, match="key 0 is under way"):
        engine.admit(made, state, 0, Request((1,)))
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        engine.make(made.apply, made.init_cache, made.params, EngineConfig(chunk=0))


def test_why_a_row_ended(made):
    free, full, none = finish(
        made, Request((3,), GREEDY, max_tokens=6), Request(LONG, GREEDY, max_tokens=9), Request((3,), max_tokens=0)
    )
    assert [token.finish for token in free] == [None] * 5 + ["length"]
    assert [token.finish for token in full] == [None, None, "length"]
    assert [(token.id, token.finish) for token in none] == [(None, "length")]
    stop = free[2].id
    (cut,) = finish(made, Request((3,), GREEDY, max_tokens=6, stop_ids=frozenset([stop])))
    assert cut[-1].finish == "stop"
    assert [token.id for token in cut] == [token.id for token in free][: [t.id for t in free].index(stop) + 1]


def test_logprobs_are_the_models_own(made, parts):
    asked = Request(LONG[:12], SampleConfig(temperature=3.0, top_k=2), 1, 4, logprobs=3, prompt_logprobs=True)
    quiet = asked._replace(logprobs=None, prompt_logprobs=False)
    tokens, untold = finish(made, asked, quiet)
    ids = [*asked.prompt, *(token.id for token in tokens)]
    logs = parts[0](parts[2], torch.tensor([ids]))[0][0].log_softmax(-1)
    told = [*tokens[0].prompt.logprobs, *tokens]
    assert len(told) == len(ids) - 1
    for row, token, one in zip(logs, ids[1:], told, strict=False):
        assert one.logprob == pytest.approx(row[token].item(), abs=1e-5)
        assert [i for i, _ in one.top] == row.topk(3).indices.tolist()
        assert [log for _, log in one.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-5)
    assert all((token.logprob, token.top) == (None, ()) for token in untold)
    assert untold[0].prompt.logprobs == ()
    assert [token.id for token in untold] == [token.id for token in tokens]


def test_a_step_may_own_the_slots(parts):
    """As a recorded graph does: it copies what it is handed once, and from then on hands out its own."""
    held = []

    def capture(step):
        def captured(slots, batch):
            if not held:
                held.append(tree.map(torch.clone, slots))
            if slots is not held[0]:
                tree.map(lambda own, new: own.copy_(new), held[0], slots)
            return held[0], step(held[0], batch)[1]

        return captured

    config = EngineConfig(max_batch=3, size=32, chunk=8)
    asked = [Request((3, 4), GREEDY, max_tokens=9), Request(LONG, GREEDY, max_tokens=3), Request((7,), max_tokens=6)]
    owned = finish(engine.make(*parts, config, lift=capture), *asked)
    assert owned == finish(engine.make(*parts, config), *asked)


def test_a_step_sees_few_shapes(parts):
    shapes = set()

    def watch(step):
        def watched(slots, batch):
            shapes.add((len(batch["tokens"]), len(batch["keys"])))
            return step(slots, batch)

        return watched

    made = engine.make(*parts, EngineConfig(max_batch=6, size=32, chunk=8), lift=watch)
    finish(made, *(Request((1,) * n, max_tokens=12) for n in range(1, 7)))
    assert shapes == {(4, 64), (8, 64)}


def test_scripts_decode_as_the_engine_does(made, parts):
    asked = [Request(LONG[:n], SampleConfig(temperature=1.3), seed=n, max_tokens=9) for n in (1, 5, 3)]
    for request, tokens in zip(asked, finish(made, *asked), strict=True):
        told = {"config": request.sampling, "seed": request.seed, "max_tokens": 9, "stop_ids": (), "size": 32}
        assert [token.id for token in tokens] == list(decode.generate(*parts, request.prompt, **told))
