"""The demo's conversations: the counts are known, nothing held out leaks, preferences are sound."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_fn.data.chat import records
from slm_fn.data.chat.records import Conversation
from slm_fn.data.demo import conversations, preferences
from slm_fn.data.demo.conversations import ConversationSplit, normalize_line
from slm_fn.text.messages import Message


@pytest.fixture(scope="module")
def corpus() -> ConversationSplit:
    return conversations.read_conversations()


def normalized_lines(rows: list[Conversation]) -> set[str]:
    return {normalize_line(m.content) for row in rows for m in row.messages}


def test_the_counts_of_the_installed_corpus(corpus: ConversationSplit) -> None:
    assert corpus.counts == {
        "entries": 2026,
        "malformed": 1,
        "repeated_entries": 1127,
        "examples": 1085,
        "repeated_examples": 2,
        "groups": 697,
        "train": 989,
        "held_out": 94,
    }
    assert (len(corpus.train), len(corpus.held_out)) == (989, 94)


def test_no_held_out_line_is_trained_on(corpus: ConversationSplit) -> None:
    assert not normalized_lines(corpus.train) & normalized_lines(corpus.held_out)


def test_conversations_take_turns_and_end_with_a_reply(corpus: ConversationSplit) -> None:
    for row in corpus.train + corpus.held_out:
        assert [m.role for m in row.messages] == ["user", "assistant"] * (len(row.messages) // 2)
        assert all(m.content and m.content == m.content.strip() for m in row.messages)
    distinct = {
        tuple(map(normalize_line, (m.content for m in r.messages)))
        for r in corpus.train + corpus.held_out
    }
    assert len(distinct) == 989 + 94, "a conversation is repeated"


def test_alternatives_become_examples_and_turns_a_conversation() -> None:
    u, a = (
        (lambda text: Message("user", text)),
        (lambda text: Message("assistant", text)),
    )
    entries = [
        ("food", ["Q?", "one", "two "]),
        ("health", ["a", "b", "c", "d", "e"]),
        ("food", ["q", "ONE!"]),
    ]
    bad = [
        ("food", "bare"),
        ("food", ["alone"]),
        ("food", ["a", 3]),
        ("food", ["a", " "]),
        ("food", ["Q?", "one", "two"]),
    ]
    found = conversations.split_conversations(entries + bad, fraction=0.0)
    assert [row.messages for row in found.train] == [
        (u("Q?"), a("one")),
        (u("Q?"), a("two")),
        (u("a"), a("b"), u("c"), a("d")),
    ]
    counts = found.counts
    assert (counts["malformed"], counts["repeated_entries"], counts["repeated_examples"]) == (
        4,
        1,
        1,
    )


lines = st.lists(st.sampled_from([*"abcdefgh", "A!", " b ", "c?"]), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(entries=st.lists(st.tuples(st.sampled_from(["food", "health"]), lines), max_size=12))
def test_no_split_leaks(entries: list[tuple[str, list[str]]]) -> None:
    found = conversations.split_conversations(entries, 0.5)
    assert not normalized_lines(found.train) & normalized_lines(found.held_out)
    assert (
        len(found.train) + len(found.held_out)
        == found.counts["examples"] - found.counts["repeated_examples"]
    )
    assert conversations.split_conversations(entries, 0.5) == found


def test_lines_are_compared_without_case_and_signs() -> None:
    assert normalize_line("What's  AI ?!") == normalize_line("what s ai")
    assert normalize_line("Ｆｕｌｌ width") == "full width"
    assert normalize_line("?!") == "?!" != normalize_line("...")


@pytest.mark.parametrize("side", ["train", "held_out"])
def test_a_rejected_reply_is_never_one_to_that_prompt(corpus: ConversationSplit, side: str) -> None:
    rows: list[Conversation] = getattr(corpus, side)
    given_to: dict[str, set[str]] = {}
    for row in rows:
        for prompt, reply in pairwise(row.messages):
            if reply.role == "assistant":
                given_to.setdefault(normalize_line(prompt.content), set()).add(
                    normalize_line(reply.content)
                )
    found = preferences.preference_pairs(rows, 0, 4)
    replies = {
        tuple(normalize_line(m.content) for m in r.messages[: i + 1])
        for r in rows
        for i in range(1, len(r.messages), 2)
    }
    assert len(found) == 4 * len(replies)
    per_reply: Counter[object] = Counter()
    for pair in found:
        assert pair.prompt[-1].role == "user"
        given = given_to[normalize_line(pair.prompt[-1].content)]
        assert normalize_line(pair.chosen[0].content) in given
        assert normalize_line(pair.rejected[0].content) not in given
        assert normalize_line(pair.rejected[0].content) in {
            reply for replies in given_to.values() for reply in replies
        }
        per_reply[pair.prompt, pair.chosen] += 1
    assert set(per_reply.values()) == {4}
    assert len({(p.prompt, p.chosen, p.rejected) for p in found}) == len(found)
    assert preferences.preference_pairs(rows, 0, 4) == found
    assert preferences.preference_pairs(rows, 1, 4) != found


def test_a_reply_is_rejected_about_as_often_as_it_is_chosen(corpus: ConversationSplit) -> None:
    """Else the model could learn which replies are liked, without reading the prompt."""
    found = preferences.preference_pairs(corpus.train, 0, 4)
    chosen, rejected = (
        Counter(normalize_line(getattr(p, s)[0].content) for p in found)
        for s in ("chosen", "rejected")
    )
    assert sum(abs(chosen[reply] - rejected[reply]) for reply in chosen) < 0.1 * len(found)


def test_held_out_pairs_are_held_out_on_both_sides(corpus: ConversationSplit) -> None:
    pairs = preferences.held_out_pairs(corpus.held_out, 0)
    assert len(pairs) == 570 == 6 * 95
    trained = normalized_lines(corpus.train)
    assert not any(
        normalize_line(m.content) in trained
        for t in pairs
        for m in (*t.chosen, *t.rejected, *t.prompt)
    )
    with pytest.raises(ValueError, match="only 0 replies to other prompts than"):
        preferences.held_out_pairs(corpus.held_out[:2], 0)


def test_written_data_is_read_back(corpus: ConversationSplit, tmp_path: Path) -> None:
    pairs = preferences.preference_pairs(corpus.held_out, 0, 2)
    conversations.write_chat(corpus.held_out, tmp_path / "chat.jsonl")
    conversations.write_pairs(pairs, tmp_path / "pairs.jsonl")
    assert list(records.read_chat([tmp_path / "chat.jsonl"])) == corpus.held_out
    assert list(records.read_pairs([tmp_path / "pairs.jsonl"])) == pairs
