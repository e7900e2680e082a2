"""serve/prompts.py: what cannot fit is refused before its tokens are looked for; what fits never is."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_fn.infer.sample import SampleConfig
from slm_fn.serve import prompts
from slm_fn.serve.errors import ApiError
from slm_fn.serve.protocol import Order
from slm_fn.text.chat import Message

ORDER = Order(SampleConfig(), 0)


def test_texts_have_no_fewer_tokens_than_the_least(parrot):
    tokens = [parrot.tokenizer.token_bytes(i).decode(errors="replace") for i in range(parrot.tokenizer.vocab_size)]

    @given(st.lists(st.sampled_from(tokens)).map("".join) | st.text())
    def check(text):
        assert prompts.least(parrot.tokenizer, [text]) <= max(1, len(parrot.tokenizer.encode(text)))

    check()


@pytest.mark.parametrize("ask", [
    lambda model: prompts.chat_prompt(model, [Message("user", "1" * 1_000_000)], ORDER),
    lambda model: prompts.chat_prompt(model, [Message("user", ""), Message("assistant", "")] * 20_000, ORDER),
    lambda model: prompts.text_prompts(model, ["1" * 1_000_000], ORDER),
])  # fmt: skip
def test_a_megabyte_costs_nothing(parrot, ask):
    start = time.monotonic()
    with pytest.raises(ApiError, match="maximum context length is 256 tokens") as error:
        ask(parrot)
    assert error.value.code == "context_length_exceeded"
    assert time.monotonic() - start < 0.2
