"""OASST: the best path, ranked pairs, and trees that lack something."""

import tracemalloc
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_fn.data.chat import oasst
from slm_fn.data.chat.normalize_messages import KEPT_PREFIX, TRAILING_PROMPT_CUT, UNKNOWN_LAYOUT
from slm_fn.text import chat_template
from slm_fn.text.messages import Message

DETAILS = {
    "user_id": "2c96e467-66f0-4be7-9693-bda51356a424",
    "created_date": "2023-02-06T18:48:49.391686+00:00",
    "lang": "en",
    "review_count": 3,
    "review_result": True,
    "deleted": False,
    "rank": None,
    "synthetic": False,
    "model_name": None,
    "tree_state": "ready_for_export",
    "emojis": {"name": ["+1"], "count": [2]},
}


def row(name, parent=None, rank=None, tree="t", **changes):
    role = "prompter" if name[0] == "p" else "assistant"
    place = {
        "message_id": name,
        "parent_id": parent,
        "message_tree_id": tree,
        "role": role,
        "text": f"says {name}",
    }
    return {**DETAILS, **place, "rank": rank, **changes}


TREE = [
    row("p0"),
    row("a1", "p0", 1),
    row("a0", "p0", 0),
    row("a2", "p0", 2),
    row("p1", "a0"),
    row("p2", "a0"),
    row("a3", "p2", 1),
    row("a4", "p2", 0),
    row("p3", "a4"),
    row("p4", "a1"),
    row("a5", "p4"),
]


def run(layout, rows, **options):
    counts: Counter[str] = Counter()
    return list(layout(rows, lambda reason: counts.update([reason]), **options)), counts


def joined_names(messages):
    return " ".join(message.content.removeprefix("says ") for message in messages)


def test_the_best_path_follows_ranks_then_the_longest_continuation():
    (conversation,), counts = run(oasst.conversations, TREE)
    assert joined_names(conversation.messages) == "p0 a0 p2 a4"
    assert counts == {oasst.OFF_PATH: 6, TRAILING_PROMPT_CUT: 1}


def test_pairs_are_the_best_reply_against_each_ranked_lower():
    pairs, counts = run(oasst.preferences, TREE)
    found = [
        (joined_names(pair.prompt), joined_names(pair.chosen), joined_names(pair.rejected))
        for pair in pairs
    ]
    assert found == [("p0", "a0", "a1"), ("p0", "a0", "a2"), ("p0 a0 p2", "a4", "a3")]
    assert not counts


def test_equal_ranks_make_no_pair():
    pairs, counts = run(
        oasst.preferences, [row("p0"), row("a0", "p0", 0), row("a1", "p0", 0), row("a2", "p0")]
    )
    assert pairs == []
    assert counts == {"no two ranked replies to one prompt": 1}


def test_deleted_or_rejected_messages_are_dropped_with_their_replies():
    rows = [r | {"deleted": True} if r["message_id"] == "a0" else r for r in TREE]
    (conversation,), counts = run(oasst.conversations, rows)
    assert joined_names(conversation.messages) == "p0 a1 p4 a5"
    assert counts == {oasst.REMOVED: 1, oasst.ORPHAN: 5, oasst.OFF_PATH: 1}
    rows = [r | {"review_result": False} if r["message_id"] == "a4" else r for r in TREE]
    assert joined_names(run(oasst.conversations, rows)[0][0].messages) == "p0 a0 p2 a3"


@pytest.mark.parametrize(
    ("rows", "options", "reason"),
    [
        (TREE[1:], {}, "a tree without its root"),
        (
            [row("p0", deleted=True), *TREE[1:]],
            {},
            "a tree whose root was deleted or failed its review",
        ),
        (
            [row("p0", tree_state="aborted_low_grade"), *TREE[1:]],
            {},
            "a tree that moderators stopped",
        ),
        (TREE, {"languages": {"de", "fr"}}, "a tree in another language"),
        (TREE[:1], {}, "no reply of the assistant's to a user"),
    ],
)
def test_a_tree_that_gives_nothing_is_counted_once(rows, options, reason):
    assert run(oasst.conversations, rows, **options) == ([], Counter([reason]))


def test_a_requested_language_is_kept():
    assert len(run(oasst.conversations, TREE, languages={"en"})[0]) == 1


def test_trees_may_be_interleaved_and_a_late_message_is_counted(monkeypatch):
    monkeypatch.setattr(oasst, "MAX_OPEN_TREES", 2)
    rows = [row(f"p{t}", tree=f"t{t}") for t in range(4)] + [
        row(f"a{t}", f"p{t}", tree=f"t{t}") for t in range(4)
    ]
    found, counts = run(oasst.conversations, rows)
    assert [joined_names(conversation.messages) for conversation in found] == ["p2 a2", "p3 a3"]
    assert counts["a message came after its tree was closed; sort the rows by message_tree_id"] == 2
    assert counts["no reply of the assistant's to a user"] == 2


def test_cycles_and_repeated_messages_are_handled():
    rows = [
        row("p0", "a4"),
        *TREE,
        row("p8", "a8"),
        row("a8", "p8"),
        row("a0", "p2", 3),
        {"text": "no message"},
    ]
    (conversation,), counts = run(oasst.conversations, rows)
    assert joined_names(conversation.messages) == "p0 a0 p2 a4"
    assert (counts[oasst.ORPHAN], counts[oasst.REPEATED], counts["not of this layout"]) == (2, 2, 1)


def test_a_chain_of_five_thousand_replies_is_converted():
    chain = [
        row("p0"),
        *(row(f"{'pa'[i % 2]}{i}", f"{'pa'[(i - 1) % 2]}{i - 1}") for i in range(1, 5000)),
    ]
    (conversation,), _ = run(oasst.conversations, chain[::-1])
    assert len(conversation.messages) == 5000


def test_memory_is_that_of_the_open_trees(monkeypatch):
    monkeypatch.setattr(oasst, "MAX_OPEN_TREES", 20)

    def rows():
        for t in range(200):
            yield row("p0", tree=f"t{t}", text=f"{t}" + "x" * 100_000)
            yield row("a0", "p0", tree=f"t{t}")

    tracemalloc.start()
    found = sum(1 for _ in oasst.conversations(rows(), lambda reason: None))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == 200
    assert peak < 5e6  # all of them are 20 MB


@st.composite
def forests(draw):
    rows = []
    for t in range(draw(st.integers(1, 3))):
        for i in range(draw(st.integers(1, 8))):
            parent = draw(st.none() | st.integers(0, 8)) if i else None
            changes = {
                "role": draw(st.sampled_from(["prompter", "assistant"])),
                "deleted": draw(st.integers(0, 9)) == 0,
            }
            place = None if parent is None else f"m{t}.{parent}"
            rows.append(
                row(f"m{t}.{i}", place, draw(st.none() | st.integers(0, 3)), f"t{t}", **changes)
            )
    return draw(st.permutations(rows))


@settings(max_examples=300, deadline=None)
@given(forests())
def test_every_tree_is_yielded_or_counted_once_and_order_does_not_matter_to_how_many(rows):
    trees = len({r["message_tree_id"] for r in rows})
    for layout in (oasst.conversations, oasst.preferences):
        found, counts = run(layout, rows)
        dropped = sum(
            count for reason, count in counts.items() if not reason.startswith(KEPT_PREFIX)
        )
        if layout is oasst.conversations:
            assert len(found) + dropped == trees
            for conversation in found:
                chat_template.check_messages(
                    [Message(message.role, message.content) for message in conversation.messages]
                )
        else:
            assert dropped <= trees
            for pair in found:
                assert pair.prompt[-1].role == "user"
                assert pair.chosen[0].role == pair.rejected[0].role == "assistant"


@pytest.mark.parametrize("column", ["message_tree_id", "parent_id", "tree_state"])
@pytest.mark.parametrize("layout", [oasst.conversations, oasst.preferences])
def test_an_id_that_is_not_text_is_not_a_message(column, layout):
    _, counts = run(
        layout, [row("p1", **{column: ["x"]}) if column != "parent_id" else row("p1", ["x"])]
    )
    assert counts == {UNKNOWN_LAYOUT: 1}
