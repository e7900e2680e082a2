"""The speeds of generation: what is counted, and the prompts that every implementation gets."""

import pytest

from slm_fn.bench.decode.timing import DecodeWorkload, Generation, time_generation


def test_speeds_of_a_generator_with_known_times():
    def generate(num_requests, prompt_tokens, new_tokens):
        prefill_seconds = prompt_tokens * num_requests / 1000
        return Generation(prefill_seconds + new_tokens - 1, [prefill_seconds] * num_requests)

    workload = DecodeWorkload(2048, prompt_tokens=100, new_tokens=11, long_prompt=400)
    timing = time_generation(generate, workload)
    assert timing.tok_per_s == pytest.approx(1)
    assert timing.request_tok_per_s == pytest.approx(11 / 10.1)
    assert timing.batch8_tok_per_s == pytest.approx(8 * 11 / 10.8)
    assert timing.prefill_tok_per_s == pytest.approx(1000)
    assert timing.first_token_p50_ms == pytest.approx(800)


def test_prompts_differ_by_index_and_fit_the_vocabulary():
    workload = DecodeWorkload(2048)
    prompts = [workload.prompt(index, 64) for index in range(8)]
    assert len({tuple(prompt) for prompt in prompts}) == 8
    assert all(0 <= min(prompt) <= max(prompt) < 2048 for prompt in prompts)
