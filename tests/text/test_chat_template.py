"""Training and serving use the same ids; the mask covers what the assistant wrote."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_fn.text.chat_template import ChatTemplate, render, render_batch
from slm_fn.text.messages import Message
from slm_fn.text.tokenizer import Tokenizer
from slm_fn.text.training import bpe

TOKENIZER = bpe.train(["hello there, how are you?"] * 3, 300)
END = TOKENIZER.special_id("<|end|>")
contents = st.one_of(
    st.text(max_size=12), st.sampled_from(["<|end|>", "<|assistant|> hi", "", " "])
)


@st.composite
def conversations(draw: st.DrawFn, answered: bool = True) -> list[Message]:
    rounds = draw(st.integers(1, 3))
    system = [Message("system", draw(contents))] if draw(st.booleans()) else []
    turns = [Message(role, draw(contents)) for _ in range(rounds) for role in ("user", "assistant")]
    return system + (turns if answered else turns[:-1])


@settings(max_examples=200, deadline=None)
@given(messages=conversations())
def test_serving_ids_are_a_prefix_of_training_ids_at_every_turn(messages: list[Message]) -> None:
    full = render(ChatTemplate(), TOKENIZER, messages)
    for i, message in enumerate(messages):
        if message.role == "assistant":
            prompt = render(ChatTemplate(), TOKENIZER, messages[:i], add_generation_prompt=True)
            assert full.ids[: len(prompt.ids)] == prompt.ids
            assert full.mask[: len(prompt.ids)] == prompt.mask
            answer = [*TOKENIZER.encode(message.content), END]
            assert full.ids[len(prompt.ids) :][: len(answer)] == answer
            assert full.mask[len(prompt.ids) :][: len(answer)] == [1] * len(answer)


@settings(max_examples=200, deadline=None)
@given(messages=conversations())
def test_every_assistant_turn_has_one_supervised_end_and_nothing_else_is_supervised(
    messages: list[Message],
) -> None:
    ids, mask = render(ChatTemplate(), TOKENIZER, messages)
    replies = [m.content for m in messages if m.role == "assistant"]
    assert sum(m for i, m in zip(ids, mask, strict=True) if i == END) == len(replies)
    assert sum(mask) == sum(len(TOKENIZER.encode(text)) + 1 for text in replies)
    assert TOKENIZER.decode([i for i, m in zip(ids, mask, strict=True) if m]) == "".join(replies)
    controls = sum(i in TOKENIZER.special_tokens.values() for i in ids)
    assert controls == 1 + 2 * len(messages), "what a user typed became a special token"


@settings(max_examples=200, deadline=None)
@given(batch=st.lists(conversations() | conversations(answered=False), max_size=4))
def test_a_batch_is_each_conversation_rendered_alone(batch: list[list[Message]]) -> None:
    together = render_batch(ChatTemplate(), TOKENIZER, batch)
    assert together == [render(ChatTemplate(), TOKENIZER, messages) for messages in batch]


def test_one_bad_conversation_of_many_is_rejected() -> None:
    with pytest.raises(ValueError, match="message 0 is of role assistant"):
        render_batch(ChatTemplate(), TOKENIZER, [[U, A], [A]])


def test_the_layout(tokenizer: Tokenizer) -> None:
    messages = [Message("system", "be"), Message("user", "to"), Message("assistant", "or")]
    be, to, or_ = map(tokenizer.encode, ("be", "to", "or"))
    assert render(ChatTemplate(), tokenizer, messages).ids == [0, 2, *be, 5, 3, *to, 5, 4, *or_, 5]
    assert render(ChatTemplate(), tokenizer, messages[:2], add_generation_prompt=True).ids == [
        0,
        2,
        *be,
        5,
        3,
        *to,
        5,
        4,
    ]
    swapped = msgspec.json.decode(b'{"user": "<|system|>"}', type=ChatTemplate)
    assert render(swapped, tokenizer, messages[1:2]).ids == [0, 2, *to, 5]


U, A, S = Message("user", "u"), Message("assistant", "a"), Message("system", "s")


@pytest.mark.parametrize(
    ("messages", "add_generation_prompt", "error"),
    [
        ([], False, "at least one message"),
        (
            [Message("tool", "x")],
            False,
            "message 0 has the unknown role 'tool'.*system, user, assistant",
        ),
        ([U, S], False, "message 1 is a system message; only the first"),
        ([S, S], False, "message 1 is a system message"),
        ([A], False, "message 0 is of role assistant.*begins with the user"),
        ([S, U, U], False, "message 2 is of role user.*message 1 is of that role too"),
        ([U, A, A], False, "message 2 is of role assistant"),
        ([U, A], True, "a reply needs a user message.*last message is of role assistant"),
        ([S], True, "a reply needs a user message.*system"),
    ],
)
def test_invalid_conversations_are_rejected(
    messages: list[Message], add_generation_prompt: bool, error: str
) -> None:
    with pytest.raises(ValueError, match=error):
        render(ChatTemplate(), TOKENIZER, messages, add_generation_prompt)


def test_a_tokenizer_without_the_templates_tokens_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"no special token <\|end\|>"):
        render(ChatTemplate(), bpe.train(["a"], 300, special_tokens=["<|endoftext|>"]), [U])
