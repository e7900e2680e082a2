"""pipeline/generation/generate.py.

What fits, what is dropped, and the ids a conversation becomes.
"""

import pytest

from slm_fn.nn import gpt
from slm_fn.nn.gpt import ModelConfig
from slm_fn.pipeline.generation import generate
from slm_fn.pipeline.model_folder import GenerationConfig, Model
from slm_fn.text.messages import Message
from slm_fn.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def model(project):
    tokenizer = Tokenizer.load(project.tokenizer)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        dim=16,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        ffn_dim=16,
        context=64,
    )
    return Model(config, gpt.init(config, 0), tokenizer, GenerationConfig())


def turns(count):
    roles = ("user", "assistant")
    return [Message(roles[i % 2], f"the king number {i}") for i in range(count)]


def test_the_oldest_turns_go_and_the_system_message_stays(model):
    messages = [Message("system", "be brief"), *turns(21)]
    kept, dropped = generate.truncate_messages(model, messages, room=16)
    assert dropped > 0
    assert kept[0] == messages[0]
    assert kept[-1] == messages[-1]
    assert kept[1:] == messages[1 + 2 * dropped :]
    assert len(generate.encode_chat(model, kept)) + 16 <= model.config.context
    one_more = [messages[0], *messages[1 + 2 * (dropped - 1) :]]
    assert len(generate.encode_chat(model, one_more)) + 16 > model.config.context, (
        "no turn is dropped that would have fitted"
    )


def test_what_fits_is_left_alone(model):
    assert generate.truncate_messages(model, turns(3), room=8) == (turns(3), 0)


def test_writing_ends_with_a_reason(model):
    ids = generate.encode_text(model, "to be")
    request = generate.make_request(model, ids, generate.sampling_config(model, {}), 0, 5)
    deltas = list(generate.stream_text(model, request))
    assert deltas[-1].finish in ("stop", "length")
    assert all(delta.finish is None for delta in deltas[:-1])


def test_no_limit_means_to_the_end_of_the_context(model):
    ids = generate.encode_text(model, "to be")
    hot = generate.sampling_config(model, {"temperature": 3.0})
    endless = model._replace(generation=GenerationConfig(stop=()))
    request = generate.make_request(endless, ids, hot, seed=0)
    assert list(generate.stream_text(endless, request))[-1].num_tokens == 64 - len(ids)
