"""Turns: roles by their names, contents as text, order repaired or rejected with a reason."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_fn.data.chat import normalize_messages
from slm_fn.data.chat.normalize_messages import (
    EMPTY_SYSTEM_CUT,
    LEADING_REPLY_CUT,
    MERGED_TURNS,
    TRAILING_PROMPT_CUT,
    NormalizedMessages,
    RejectedRowError,
    normalize,
)
from slm_fn.text import chat_template
from slm_fn.text.messages import Message


def summary(tidied: NormalizedMessages) -> str:
    return "|".join(f"{message.role[0]}:{message.content}" for message in tidied.messages)


@pytest.mark.parametrize(
    ("given_turns", "expected", "repairs"),
    [
        ([("user", "Hi"), ("assistant", "Hello.")], "u:Hi|a:Hello.", ()),
        ([("human", "Hi"), ("gpt", "Hello.")], "u:Hi|a:Hello.", ()),
        ([("prompter", "Hi"), ("Model", "Hello.")], "u:Hi|a:Hello.", ()),
        (
            [("developer", "Be kind."), ("user", "Hi"), ("assistant", "Hello.")],
            "s:Be kind.|u:Hi|a:Hello.",
            (),
        ),
        (
            [("system", " "), ("user", "Hi"), ("assistant", "Hello.")],
            "u:Hi|a:Hello.",
            (EMPTY_SYSTEM_CUT,),
        ),
        ([("user", "a"), ("user", "b"), ("assistant", "c")], "u:a\n\nb|a:c", (MERGED_TURNS,)),
        (
            [("assistant", "Welcome!"), ("user", "a"), ("assistant", "c")],
            "u:a|a:c",
            (LEADING_REPLY_CUT,),
        ),
        ([("user", "a"), ("assistant", "c"), ("user", "bye")], "u:a|a:c", (TRAILING_PROMPT_CUT,)),
        ([("user", "\n a  b\n\n c \t"), ("assistant", "    code\n")], "u:a  b\n\n c|a:code", ()),
        (
            [
                ("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
                ("gpt", "c"),
            ],
            "u:ab|a:c",
            (),
        ),
    ],
)
def test_turns_become_a_conversation(given_turns, expected, repairs):
    tidied = normalize(given_turns)
    assert summary(tidied) == expected
    assert tidied.repairs == repairs
    assert all(repair.startswith(normalize_messages.KEPT_PREFIX) for repair in tidied.repairs)


@pytest.mark.parametrize(
    ("given_turns", "reason"),
    [
        ([("user", "a"), ("tool", "{}"), ("assistant", "b")], "a tool's turn"),
        ([("user", "a"), ("function_call", "{}"), ("assistant", "b")], "a tool's turn"),
        ([("user", "a"), ("narrator", "once"), ("assistant", "b")], "an unknown role"),
        ([(None, "a"), ("assistant", "b")], "an unknown role"),
        ([("user", None), ("assistant", "b")], "contents that are no text"),
        (
            [("user", [{"type": "image_url", "image_url": {}}]), ("assistant", "b")],
            "contents that are no text",
        ),
        (
            [("user", [{"type": "text", "text": 3}]), ("assistant", "b")],
            "contents that are no text",
        ),
        ([("user", "a\ud800"), ("assistant", "b")], "half a surrogate pair"),
        ([("user", "a"), ("assistant", " \n")], "an empty turn"),
        (
            [("user", "a"), ("system", "no"), ("assistant", "b")],
            "a system message behind the first turn",
        ),
        ([("user", "a")], "no reply of the assistant's to a user"),
        ([("assistant", "a")], "no reply of the assistant's to a user"),
        ([("system", "a")], "no reply of the assistant's to a user"),
        ([], "no reply of the assistant's to a user"),
    ],
)
def test_invalid_turns_are_rejected_with_a_reason(given_turns, reason):
    with pytest.raises(RejectedRowError) as error:
        normalize(given_turns)
    assert str(error.value) == reason
    assert not reason.startswith(normalize_messages.KEPT_PREFIX)


names = st.sampled_from([*normalize_messages.ROLES, "USER", "tool", "narrator"])
spoken = st.lists(st.tuples(names, st.text(" ab\n\ud800", max_size=4)), max_size=8)


@settings(max_examples=1000, deadline=None)
@given(spoken)
def test_the_result_alternates_and_adds_no_words(given_turns):
    try:
        messages, repairs = normalize(given_turns)
    except RejectedRowError:
        return
    chat_template.check_messages([Message(message.role, message.content) for message in messages])
    assert messages[-1].role == "assistant"
    assert all(message.content == message.content.strip() != "" for message in messages)
    assert normalize((message.role, message.content) for message in messages) == NormalizedMessages(
        messages
    )
    words = [text.strip() for _, text in given_turns if text.strip()]
    kept = "\n\n".join(message.content for message in messages)
    cut = {LEADING_REPLY_CUT, TRAILING_PROMPT_CUT} & set(repairs)
    assert kept in "\n\n".join(words) if cut else kept == "\n\n".join(words)
    if not repairs:
        assert [normalize_messages.parse_role(role) for role, _ in given_turns] == [
            message.role for message in messages
        ]
        assert all(a.role != b.role for a, b in pairwise(messages))


def test_two_sides_are_split_at_a_reply():
    begun = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    chosen, rejected = (
        normalize([*begun, ("assistant", answer)]).messages for answer in ("d", "e")
    )
    pair = normalize_messages.split_pair(chosen, rejected)
    assert (pair.prompt + pair.chosen, pair.prompt + pair.rejected) == (chosen, rejected)
    assert len(pair.chosen) == len(pair.rejected) == 1


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("ab", "ab", "chosen equals rejected"),
        ("ab", "cd", "do not answer the same prompt"),
        ("abcd", "abed", "do not answer the same prompt"),
        ("ab", "abcd", "do not answer the same prompt"),
    ],
)
def test_sides_that_do_not_differ_in_a_reply_are_rejected(chosen, rejected, reason):
    a, b = (
        normalize(zip(("user", "assistant") * 2, text, strict=False)).messages
        for text in (chosen, rejected)
    )
    with pytest.raises(RejectedRowError, match=reason):
        normalize_messages.split_pair(a, b)
