"""pipeline/talk.py: what fits, what is dropped, and the ids a conversation becomes."""

import pytest

from slm_fn.nn import gpt
from slm_fn.nn.gpt import ModelConfig
from slm_fn.pipeline import talk
from slm_fn.pipeline.model import Generation, Model
from slm_fn.text.chat import Message
from slm_fn.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def model(road):
    tokenizer = Tokenizer.load(road.tokenizer)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, dim=16, num_layers=1, num_heads=1, num_kv_heads=1, ffn_dim=16, context=64
    )
    return Model(config, gpt.init(config, 0), tokenizer, Generation())


def turns(count):
    roles = ("user", "assistant")
    return [Message(roles[i % 2], f"the king number {i}") for i in range(count)]


def test_the_oldest_turns_go_and_the_system_message_stays(model):
    messages = [Message("system", "be brief"), *turns(21)]
    kept, dropped = talk.fit(model, messages, room=16)
    assert dropped > 0
    assert kept[0] == messages[0]
    assert kept[-1] == messages[-1]
    assert kept[1:] == messages[1 + 2 * dropped :]
    assert len(talk.chat_ids(model, kept)) + 16 <= model.config.context
    one_more = [messages[0], *messages[1 + 2 * (dropped - 1) :]]
    assert len(talk.chat_ids(model, one_more)) + 16 > model.config.context, "no turn is dropped that would have fitted"


def test_what_fits_is_left_alone(model):
    assert talk.fit(model, turns(3), room=8) == (turns(3), 0)


def test_writing_ends_with_a_reason(model):
    pieces = list(talk.write(model, talk.text_ids(model, "to be"), talk.sampling(model, {}), seed=0, max_tokens=5))
    assert pieces[-1].finish in ("stop", "length")
    assert all(piece.finish is None for piece in pieces[:-1])


def test_no_limit_means_to_the_end_of_the_context(model):
    ids = talk.text_ids(model, "to be")
    hot = talk.sampling(model, {"temperature": 3.0})
    endless = model._replace(generation=Generation(stop=()))
    assert list(talk.write(endless, ids, hot, seed=0))[-1].num_tokens == 64 - len(ids)
