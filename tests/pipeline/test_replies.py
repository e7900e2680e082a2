"""pipeline/replies.py: seeds, texts and ids of replies, and other sampling defaults."""

import pytest

from slm_fn.nn import gpt
from slm_fn.pipeline import replies
from slm_fn.pipeline.model_folder import GenerationConfig, Model
from slm_fn.text.tokenizer import Tokenizer

PROMPTS = ("who is a fool?", "who is my lord?")


@pytest.fixture(scope="module")
def model(project):
    tokenizer = Tokenizer.load(project.tokenizer)
    config = gpt.check(
        gpt.ModelConfig(
            vocab_size=tokenizer.vocab_size,
            dim=32,
            num_layers=1,
            num_heads=2,
            num_kv_heads=2,
            context=64,
        )
    )
    return Model(config, gpt.init(config, key=0), tokenizer, GenerationConfig())


def test_default_seeds_are_the_prompts_indices(model):
    ids = replies.reply_ids(model, PROMPTS, max_tokens=8)
    assert ids == replies.reply_ids(model, PROMPTS, max_tokens=8, seeds=(0, 1))
    assert ids != replies.reply_ids(model, PROMPTS, max_tokens=8, seeds=(2, 3))
    assert all(len(reply) <= 8 for reply in ids)


def test_texts_are_the_decoded_ids(model):
    ids = replies.reply_ids(model, PROMPTS, max_tokens=8)
    texts = replies.reply_texts(model, PROMPTS, max_tokens=8)
    assert texts == [model.tokenizer.decode(reply) for reply in ids]


def test_other_sampling_defaults_leave_the_rest(model):
    greedy = replies.with_sampling(model, temperature=0.0)
    assert greedy.generation.sampling.temperature == 0.0
    assert greedy.generation.stop == model.generation.stop
    assert greedy.params is model.params
    first = replies.reply_ids(greedy, PROMPTS, max_tokens=8, seeds=(0, 1))
    assert first == replies.reply_ids(greedy, PROMPTS, max_tokens=8, seeds=(2, 3))
