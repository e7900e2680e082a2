"""infer/decode.py: the same tokens as the full forward pass, alone or beside others, within the context."""

from functools import partial

import pytest
import torch

from slm_fn.infer import decode
from slm_fn.infer.sample import SampleConfig
from slm_fn.nn import gpt

PROMPTS = ([3], [5, 6, 7, 8], [9, 1, 2], [4] * 11)


@pytest.fixture
def made(config, model, rough):
    params = rough(config)

    def generate(prompt, **changes):
        told = {
            "config": SampleConfig(temperature=0.0),
            "seed": 0,
            "max_tokens": 12,
            "stop_ids": (),
            "size": 32,
            **changes,
        }
        return list(decode.generate(model, partial(gpt.init_cache, config), params, prompt, **told))

    def batch(prompts, **changes):
        told = {"config": SampleConfig(), "seeds": range(len(prompts)), "max_tokens": 12, "stop_ids": (), "size": 32}
        return decode.generate_batch(model, partial(gpt.init_cache, config), params, prompts, **{**told, **changes})

    return params, generate, batch


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_is_the_argmax_of_the_full_forward(made, model, prompt):
    params, generate, _ = made
    ids = list(prompt)
    for token in generate(prompt):
        assert token == model(params, torch.tensor([ids]))[0][0, -1].argmax().item()
        ids.append(token)
    assert len(ids) == len(prompt) + 12


@pytest.mark.parametrize(
    "settings", [SampleConfig(), SampleConfig(temperature=0.0), SampleConfig(top_k=5, repetition_penalty=1.3)]
)
def test_a_row_is_what_it_would_be_alone(made, settings):
    _, generate, batch = made
    together = batch(PROMPTS, config=settings, seeds=[7, 8, 9, 10], stop_ids=(2, 11))
    for prompt, seed, row in zip(PROMPTS, (7, 8, 9, 10), together, strict=True):
        assert row == generate(prompt, config=settings, seed=seed, stop_ids=(2, 11))


@pytest.mark.parametrize("shared", [1, 37, 60])
def test_a_shared_beginning_changes_no_token_however_little_room_is_left(made, shared):
    _, generate, _ = made
    prompt = [i % 20 for i in range(62)]  # its second piece, padded, would end beyond 64
    assert generate(prompt, size=1024, max_tokens=2, shared=shared) == generate(prompt, size=1024, max_tokens=2)


def test_seeds_decide(made):
    _, generate, _ = made
    draws = [tuple(generate([3], config=SampleConfig(temperature=1.5), seed=seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_generation_ends_with_the_stop_token(made):
    _, generate, _ = made
    free = generate([3], config=SampleConfig(temperature=2.0), max_tokens=20)
    stop = free[4]
    cut = generate([3], config=SampleConfig(temperature=2.0), max_tokens=20, stop_ids={stop})
    assert cut == free[: free.index(stop) + 1]


def test_generation_ends_where_the_context_is_full(made):
    _, generate, batch = made
    assert len(generate([1] * 30, max_tokens=50)) == 2
    assert [len(row) for row in batch([[1] * 30, [1] * 20], max_tokens=50)] == [2, 12]


def test_a_prompt_without_room_is_refused_at_once(made):
    _, generate, _ = made
    with pytest.raises(ValueError, match="This model's maximum context length is 32 tokens"):
        generate([1] * 32)
    with pytest.raises(ValueError, match="at least one token"):
        generate([])


def test_nothing_asked_is_nothing_made(made):
    _, generate, _ = made
    assert generate([1], max_tokens=0) == []
