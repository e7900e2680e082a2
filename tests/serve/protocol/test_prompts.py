"""serve/protocol/prompts.py: prompts that cannot fit are rejected before they are tokenized."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_fn.infer.sampling import SampleConfig
from slm_fn.pipeline.generation import generate
from slm_fn.serve.protocol import prompts
from slm_fn.serve.protocol.errors import ApiError
from slm_fn.serve.protocol.params import GenerationParams
from slm_fn.text.messages import Message

PARAMS = GenerationParams(SampleConfig(), seed=0)
MEGABYTE = "1" * 1_000_000


def test_the_lower_bound_holds_for_every_text(scripted_model):
    tokenizer = scripted_model.tokenizer
    tokens = [
        tokenizer.token_bytes(i).decode(errors="replace") for i in range(tokenizer.vocab_size)
    ]

    @given(st.lists(st.sampled_from(tokens)).map("".join) | st.text())
    def check(text):
        num_tokens = max(1, len(tokenizer.encode(text)))
        assert prompts.min_num_tokens(tokenizer, [text]) <= num_tokens

    check()


def tokenize_long_message(model):
    return prompts.tokenize_chat(model, [Message("user", MEGABYTE)], PARAMS)


def tokenize_many_messages(model):
    messages = [Message("user", ""), Message("assistant", "")] * 20_000
    return prompts.tokenize_chat(model, messages, PARAMS)


def tokenize_long_text(model):
    return prompts.tokenize_prompts(model, [MEGABYTE], PARAMS)


@pytest.mark.parametrize(
    "tokenize", [tokenize_long_message, tokenize_many_messages, tokenize_long_text]
)
def test_a_megabyte_is_rejected_before_it_is_tokenized(scripted_model, tokenize, monkeypatch):
    def fail(*_):
        raise AssertionError("it was tokenized")

    monkeypatch.setattr(generate, "encode_chat", fail)
    monkeypatch.setattr(generate, "encode_text", fail)
    with pytest.raises(ApiError, match="maximum context length is 256 tokens") as error:
        tokenize(scripted_model)
    assert error.value.code == "context_length_exceeded"


def test_the_system_message_of_a_conversation_is_shared(scripted_model):
    messages = [Message("system", "be brief"), Message("user", "hello")]
    ids = generate.encode_chat(scripted_model, messages)
    num_shared = generate.num_system_tokens(scripted_model, messages)
    assert prompts.tokenize_chat(scripted_model, messages, PARAMS) == (ids, num_shared)
    assert prompts.tokenize_chat(scripted_model, messages[1:], PARAMS).num_shared == 0
    with pytest.raises(ApiError) as error:
        prompts.tokenize_chat(scripted_model, [Message("user", "hello " * 300)], PARAMS)
    assert error.value.code == "context_length_exceeded"
