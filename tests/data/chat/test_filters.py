"""Filters of conversations: what each keeps and removes, by name from YAML, with counts."""

import pickle
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_fn.data.chat import filters
from slm_fn.data.chat.records import Conversation
from slm_fn.data.clean.cleaning import CHANGED
from slm_fn.text.messages import Message


def talk(*texts: str, system: str | None = None) -> Conversation:
    first = () if system is None else (Message("system", system),)
    return Conversation(
        (
            *first,
            *(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)),
        )
    )


HELLO = talk("Hi", "Hello.", "How are you?", "Well, thank you.", system="Be kind.")
LIST = (
    "1. Strength training\n2. Interval training\n3. Mindset\n4. Rest and food\n"
    "5. A coach who looks at your stride."
)


@pytest.mark.parametrize(
    ("filter", "kept", "removed"),
    [
        (filters.turns(), HELLO, talk("Hi")),
        (filters.turns(4, 4), HELLO, talk("a", "b", "c", "d", "e", "f")),
        (filters.turns(4), HELLO, talk("a", "b", system="not a turn")),
        (filters.message_length(most=16), HELLO, talk("a", "b" * 17)),
        (filters.message_length(least=2), talk("a", "bb"), talk("aaa", "b")),
        (filters.message_length("user", most=3), talk("a", "long enough"), talk("aaaa", "b")),
        (
            filters.message_length("system", most=3),
            talk("long enough", "b"),
            talk("a", "b", system="long"),
        ),
        (filters.total_length(least=4, most=6), talk("aa", "bb"), talk("a", "b")),
        (filters.total_length(most=6), talk("aaa", "bbb"), talk("aaa", "bbbb")),
        (
            filters.refusals(),
            HELLO,
            talk("Do it", "I'm sorry, but I cannot assist with that request."),
        ),
        (
            filters.refusals(),
            talk("Sorry", "I am sorry for your loss."),
            talk("a", "b", "c", "I can’t help with that."),
        ),
        (
            filters.refusals(),
            talk("a", "I cannot wait!"),
            talk("a", "AS AN AI LANGUAGE MODEL, I have no opinions."),
        ),
        (
            filters.refusals(),
            talk("As an AI, say hi", "Hi!"),
            talk("a", "As a large language model trained by"),
        ),
        (
            filters.refusals(),
            talk("a", "x" * 300 + " as an AI"),
            talk("a", "I don't have personal feelings"),
        ),
        (filters.refusals([r"nope"]), talk("a", "I cannot help"), talk("a", "Well, NOPE.")),
        (filters.refusals([]), talk("a", "I cannot help"), None),
        (filters.repeats(), talk("tell me", LIST), talk("go", "I like to run in the park. " * 9)),
        (
            filters.repeats(),
            talk("go go go go go go go go go go " * 9, "Right."),
            talk("a", "go " * 40),
        ),
        (
            filters.repeats_turns(),
            talk("a", LIST, "b", "Other words than those, and many of them."),
            talk("a", LIST, "b", LIST),
        ),
        (
            filters.repeats_turns(),
            talk("a", "Yes.", "b", "Yes."),
            talk("a", LIST, "b", LIST.upper() + " So be it."),
        ),
        (
            filters.repeats_turns(),
            HELLO,
            talk("a", LIST, "b", "Something else, that has more words.", "c", LIST),
        ),
        (filters.repeats_turns(2, 0.0), talk("x y", "x y"), talk("a", "x y z", "b", "w x y")),
    ],
)
def test_each_filter_keeps_and_removes(filter, kept, removed):
    filter = pickle.loads(pickle.dumps(filter))
    assert filters.apply([filter], kept) == (kept, "")
    if removed is not None:
        assert filters.apply([filter], removed) == (None, filter.name)


def test_the_first_turns_end_with_a_reply():
    long = talk("a", "b", "c", "d", "e", "f", system="s")
    for most, left in ((2, 2), (3, 2), (4, 4), (6, 6), (9, 6)):
        cut, reason = filters.apply([filters.first_turns(most)], long)
        assert cut == Conversation(long.messages[: left + 1])
        assert reason == (CHANGED if left < 6 else "")


def test_the_first_filter_to_remove_is_counted_and_counts_add_up():
    counts: Counter[str] = Counter()
    rows = [
        HELLO,
        talk("a"),
        talk("a", "b" * 99),
        talk("a", "As an AI"),
        talk("a", "As an AI" * 99),
        talk(*"abcdefgh"),
    ]
    chosen = filters.build(
        ["turns", {"message_length": {"most": 50}}, "refusals", {"first_turns": {"most": 4}}]
    )
    done = [filters.apply(chosen, row) for row in rows]
    counts.update(reason for _, reason in done if reason)
    assert counts == {"turns": 1, "assistant_length": 2, "refusals": 1, CHANGED: 1}
    assert [kept for kept, _ in done if kept] == [HELLO, talk(*"abcd")]


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("turn", "no rule 'turn'; did you mean 'turns'"),
        ({"turns": {"mots": 3}}, "turns has no argument 'mots'; did you mean 'most'"),
        ({"turns": {"most": "many"}}, "turns: most 'many'"),
        ({"message_length": {"role": "tool"}}, "message_length: role 'tool'"),
        ({"refusals": {"patterns": ["("]}}, "refusals: '\\(' is no regular expression"),
        ({"first_turns": {"most": 1}}, "at least 2"),
        ({"repeats_turns": {"n": 0}}, "at least 1"),
        ({"repeats": {"n": 0}}, "at least 1"),
    ],
)
def test_a_wrong_filter_is_one_clear_line(spec, error):
    with pytest.raises(ValueError, match=error) as raised:
        filters.build([spec])
    assert "\n" not in str(raised.value)


def test_every_filter_can_be_named():
    needs = {"first_turns": {"most": 4}}
    for name in filters.FILTERS:
        (built,) = filters.build([{name: needs.get(name, {})}])
        assert filters.apply([built], HELLO).conversation == HELLO


conversations = st.builds(
    lambda texts, system: talk(*texts, system=system),
    st.lists(st.text("ab cd.’\n", max_size=40), min_size=2, max_size=8).map(
        lambda texts: texts[: len(texts) // 2 * 2]
    ),
    st.none() | st.just("s"),
)


@settings(max_examples=300, deadline=None)
@given(conversations)
def test_the_result_is_a_beginning_that_ends_with_a_reply_and_passes_again(conversation):
    chosen = filters.build(
        [{"first_turns": {"most": 4}}, "turns", {"repeats_turns": {"n": 2}}, "repeats", "refusals"]
    )
    left, reason = filters.apply(chosen, conversation)
    if left is None:
        assert reason in {filter.name for filter in chosen}
        return
    assert left.messages == conversation.messages[: len(left.messages)]
    assert left.messages[-1].role == "assistant"
    assert filters.apply(chosen, left) == (left, "")
