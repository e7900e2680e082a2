"""infer/generate.py: the tokens of the full forward pass, alone or in a batch."""

from functools import partial

import pytest
import torch

from slm_fn.infer import generate
from slm_fn.infer.decoder import Decoder
from slm_fn.infer.request import Request
from slm_fn.infer.sampling import SampleConfig
from slm_fn.nn import gpt

PROMPTS = ([3], [5, 6, 7, 8], [9, 1, 2], [4] * 11)


@pytest.fixture
def made(config, model, rough):
    """`(params, generate, generate_batch)` of one model."""
    params = rough(config)
    decoder = Decoder(model, partial(gpt.init_cache, config), params)

    def generate_ids(prompt, context=32, **changes):
        fields = {"sampling": SampleConfig(temperature=0.0), "max_tokens": 12, **changes}
        return list(generate.generate(decoder, Request(tuple(prompt), **fields), context))

    def generate_batch(prompts, seeds=None, **changes):
        fields = {"max_tokens": 12, **changes}
        requests = []
        for index, prompt in enumerate(prompts):
            seed = index if seeds is None else seeds[index]
            requests.append(Request(tuple(prompt), seed=seed, **fields))
        return generate.generate_batch(decoder, requests, context=32)

    return params, generate_ids, generate_batch


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_is_the_argmax_of_the_full_forward(made, model, prompt):
    params, generate_ids, _ = made
    ids = list(prompt)
    for token in generate_ids(prompt):
        assert token == model(params, torch.tensor([ids]))[0][0, -1].argmax().item()
        ids.append(token)
    assert len(ids) == len(prompt) + 12


@pytest.mark.parametrize(
    "settings",
    [SampleConfig(), SampleConfig(temperature=0.0), SampleConfig(top_k=5, repetition_penalty=1.3)],
)
def test_a_reply_of_a_batch_is_the_reply_alone(made, settings):
    _, generate_ids, batch = made
    together = batch(PROMPTS, sampling=settings, seeds=[7, 8, 9, 10], stop_ids=frozenset([2, 11]))
    for prompt, seed, row in zip(PROMPTS, (7, 8, 9, 10), together, strict=True):
        assert row == generate_ids(
            prompt, sampling=settings, seed=seed, stop_ids=frozenset([2, 11])
        )


@pytest.mark.parametrize("shared", [1, 37, 60])
def test_shared_tokens_change_no_token_however_little_room_is_left(made, shared):
    _, generate_ids, _ = made
    prompt = [i % 20 for i in range(62)]  # its second block, padded, would end beyond 64
    assert generate_ids(prompt, context=1024, max_tokens=2, num_shared=shared) == generate_ids(
        prompt, context=1024, max_tokens=2
    )


def test_seeds_decide(made):
    _, generate_ids, _ = made
    draws = [
        tuple(generate_ids([3], sampling=SampleConfig(temperature=1.5), seed=seed))
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_generation_ends_with_the_stop_token(made):
    _, generate_ids, _ = made
    free = generate_ids([3], sampling=SampleConfig(temperature=2.0), max_tokens=20)
    stop = free[4]
    cut = generate_ids(
        [3], sampling=SampleConfig(temperature=2.0), max_tokens=20, stop_ids=frozenset([stop])
    )
    assert cut == free[: free.index(stop) + 1]


def test_generation_ends_where_the_context_is_full(made):
    _, generate_ids, batch = made
    assert len(generate_ids([1] * 30, max_tokens=50)) == 2
    assert [len(row) for row in batch([[1] * 30, [1] * 20], max_tokens=50)] == [2, 12]


def test_a_prompt_without_room_is_rejected_at_once(made):
    _, generate_ids, _ = made
    with pytest.raises(ValueError, match="This model's maximum context length is 32 tokens"):
        generate_ids([1] * 32)
    with pytest.raises(ValueError, match="at least one token"):
        generate_ids([])


def test_no_tokens_are_generated_where_none_are_requested(made):
    _, generate_ids, _ = made
    assert generate_ids([1], max_tokens=0) == []
