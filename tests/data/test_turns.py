"""Turns: roles by their names, contents as text, order repaired or refused, always said."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_fn.data import turns
from slm_fn.data.turns import HEADLESS, JOINED, NO_SYSTEM, UNANSWERED, Refused, Tidied, tidy
from slm_fn.text import chat


def said(tidied: Tidied) -> str:
    return "|".join(f"{message.role[0]}:{message.content}" for message in tidied.messages)


@pytest.mark.parametrize(
    ("given_turns", "expected", "repairs"),
    [
        ([("user", "Hi"), ("assistant", "Hello.")], "u:Hi|a:Hello.", ()),
        ([("human", "Hi"), ("gpt", "Hello.")], "u:Hi|a:Hello.", ()),
        ([("prompter", "Hi"), ("Model", "Hello.")], "u:Hi|a:Hello.", ()),
        ([("developer", "Be kind."), ("user", "Hi"), ("assistant", "Hello.")], "s:Be kind.|u:Hi|a:Hello.", ()),
        ([("system", " "), ("user", "Hi"), ("assistant", "Hello.")], "u:Hi|a:Hello.", (NO_SYSTEM,)),
        ([("user", "a"), ("user", "b"), ("assistant", "c")], "u:a\n\nb|a:c", (JOINED,)),
        ([("assistant", "Welcome!"), ("user", "a"), ("assistant", "c")], "u:a|a:c", (HEADLESS,)),
        ([("user", "a"), ("assistant", "c"), ("user", "bye")], "u:a|a:c", (UNANSWERED,)),
        ([("user", "\n a  b\n\n c \t"), ("assistant", "    code\n")], "u:a  b\n\n c|a:code", ()),
        ([("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), ("gpt", "c")], "u:ab|a:c", ()),
    ],
)
def test_turns_become_a_conversation(given_turns, expected, repairs):
    tidied = tidy(given_turns)
    assert said(tidied) == expected
    assert tidied.repairs == repairs
    assert all(repair.startswith(turns.KEPT) for repair in tidied.repairs)


@pytest.mark.parametrize(
    ("given_turns", "reason"),
    [
        ([("user", "a"), ("tool", "{}"), ("assistant", "b")], "a tool's turn"),
        ([("user", "a"), ("function_call", "{}"), ("assistant", "b")], "a tool's turn"),
        ([("user", "a"), ("narrator", "once"), ("assistant", "b")], "an unknown role"),
        ([(None, "a"), ("assistant", "b")], "an unknown role"),
        ([("user", None), ("assistant", "b")], "contents that are no text"),
        ([("user", [{"type": "image_url", "image_url": {}}]), ("assistant", "b")], "contents that are no text"),
        ([("user", [{"type": "text", "text": 3}]), ("assistant", "b")], "contents that are no text"),
        ([("user", "a\ud800"), ("assistant", "b")], "half a surrogate pair"),
        ([("user", "a"), ("assistant", " \n")], "an empty turn"),
        ([("user", "a"), ("system", "no"), ("assistant", "b")], "a system message behind the first turn"),
        ([("user", "a")], "no reply of the assistant's to a user"),
        ([("assistant", "a")], "no reply of the assistant's to a user"),
        ([("system", "a")], "no reply of the assistant's to a user"),
        ([], "no reply of the assistant's to a user"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_reason(given_turns, reason):
    with pytest.raises(Refused) as error:
        tidy(given_turns)
    assert str(error.value) == reason
    assert not reason.startswith(turns.KEPT)


names = st.sampled_from([*turns.ROLES, "USER", "tool", "narrator"])
spoken = st.lists(st.tuples(names, st.text(" ab\n\ud800", max_size=4)), max_size=8)


@settings(max_examples=1000, deadline=None)
@given(spoken)
def test_what_comes_out_takes_turns_and_says_nothing_new(given_turns):
    try:
        messages, repairs = tidy(given_turns)
    except Refused:
        return
    chat.check([chat.Message(message.role, message.content) for message in messages])
    assert messages[-1].role == "assistant"
    assert all(message.content == message.content.strip() != "" for message in messages)
    assert tidy((message.role, message.content) for message in messages) == Tidied(messages)
    words = [text.strip() for _, text in given_turns if text.strip()]
    kept = "\n\n".join(message.content for message in messages)
    cut = {HEADLESS, UNANSWERED} & set(repairs)
    assert kept in "\n\n".join(words) if cut else kept == "\n\n".join(words)
    if not repairs:
        assert [turns.role_of(role) for role, _ in given_turns] == [message.role for message in messages]
        assert all(a.role != b.role for a, b in pairwise(messages))


def test_two_sides_part_at_a_reply():
    begun = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    chosen, rejected = (tidy([*begun, ("assistant", answer)]).messages for answer in ("d", "e"))
    pair = turns.part(chosen, rejected)
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
def test_sides_that_do_not_part_at_a_reply_are_no_pair(chosen, rejected, reason):
    a, b = (tidy(zip(("user", "assistant") * 2, text, strict=False)).messages for text in (chosen, rejected))
    with pytest.raises(Refused, match=reason):
        turns.part(a, b)
