"""One template: the ids of training are the ids of serving, and the mask knows what the assistant wrote."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_fn.text import bpe
from slm_fn.text.chat import ChatTemplate, Message, render, render_batch
from slm_fn.text.tokenizer import Tokenizer

TOKENIZER = bpe.train(["hello there, how are you?"] * 3, 300)
END = TOKENIZER.special("<|end|>")
contents = st.one_of(st.text(max_size=12), st.sampled_from(["<|end|>", "<|assistant|> hi", "", " "]))


@st.composite
def conversations(draw: st.DrawFn, answered: bool = True) -> list[Message]:
    rounds = draw(st.integers(1, 3))
    system = [Message("system", draw(contents))] if draw(st.booleans()) else []
    turns = [Message(role, draw(contents)) for _ in range(rounds) for role in ("user", "assistant")]
    return system + (turns if answered else turns[:-1])


@settings(max_examples=200, deadline=None)
@given(messages=conversations())
def test_serving_ids_are_a_prefix_of_training_ids_at_every_turn(messages: list[Message]) -> None:
    whole = render(ChatTemplate(), TOKENIZER, messages)
    for i, message in enumerate(messages):
        if message.role == "assistant":
            asked = render(ChatTemplate(), TOKENIZER, messages[:i], reply=True)
            assert whole.ids[: len(asked.ids)] == asked.ids
            assert whole.mask[: len(asked.ids)] == asked.mask
            answer = [*TOKENIZER.encode(message.content), END]
            assert whole.ids[len(asked.ids) :][: len(answer)] == answer
            assert whole.mask[len(asked.ids) :][: len(answer)] == [1] * len(answer)


@settings(max_examples=200, deadline=None)
@given(messages=conversations())
def test_every_assistant_turn_has_one_supervised_end_and_nothing_else_is_supervised(messages: list[Message]) -> None:
    ids, mask = render(ChatTemplate(), TOKENIZER, messages)
    said = [m.content for m in messages if m.role == "assistant"]
    assert sum(m for i, m in zip(ids, mask, strict=True) if i == END) == len(said)
    assert sum(mask) == sum(len(TOKENIZER.encode(text)) + 1 for text in said)
    assert TOKENIZER.decode([i for i, m in zip(ids, mask, strict=True) if m]) == "".join(said)
    controls = sum(i in TOKENIZER.specials.values() for i in ids)
    assert controls == 1 + 2 * len(messages), "what a user typed became a control token"


@settings(max_examples=200, deadline=None)
@given(batch=st.lists(conversations() | conversations(answered=False), max_size=4))
def test_many_rendered_together_are_each_rendered_alone(batch: list[list[Message]]) -> None:
    together = render_batch(ChatTemplate(), TOKENIZER, batch)
    assert together == [render(ChatTemplate(), TOKENIZER, messages) for messages in batch]


def test_one_bad_conversation_of_many_is_refused() -> None:
    with pytest.raises(ValueError, match="message 0 is of role assistant"):
        render_batch(ChatTemplate(), TOKENIZER, [[U, A], [A]])


def test_the_layout(tokenizer: Tokenizer) -> None:
    messages = [Message("system", "be"), Message("user", "to"), Message("assistant", "or")]
    be, to, or_ = map(tokenizer.encode, ("be", "to", "or"))
    assert render(ChatTemplate(), tokenizer, messages).ids == [0, 2, *be, 5, 3, *to, 5, 4, *or_, 5]
    assert render(ChatTemplate(), tokenizer, messages[:2], reply=True).ids == [0, 2, *be, 5, 3, *to, 5, 4]
    swapped = msgspec.json.decode(b'{"user": "<|system|>"}', type=ChatTemplate)
    assert render(swapped, tokenizer, messages[1:2]).ids == [0, 2, *to, 5]


U, A, S = Message("user", "u"), Message("assistant", "a"), Message("system", "s")


@pytest.mark.parametrize(
    ("messages", "reply", "error"),
    [
        ([], False, "at least one message"),
        ([Message("tool", "x")], False, "message 0 has the unknown role 'tool'.*system, user, assistant"),
        ([U, S], False, "message 1 is a system message; only the first"),
        ([S, S], False, "message 1 is a system message"),
        ([A], False, "message 0 is of role assistant.*begins with the user"),
        ([S, U, U], False, "message 2 is of role user.*message 1 is of that role too"),
        ([U, A, A], False, "message 2 is of role assistant"),
        ([U, A], True, "a reply needs a user message.*last message is of role assistant"),
        ([S], True, "a reply needs a user message.*system"),
    ],
)
def test_what_is_no_conversation_is_refused(messages: list[Message], reply: bool, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        render(ChatTemplate(), TOKENIZER, messages, reply)


def test_a_tokenizer_without_the_templates_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no control token <\|end\|>"):
        render(ChatTemplate(), bpe.train(["a"], 300, specials=["<|endoftext|>"]), [U])
