"""Layouts: rows of public data sets become conversations and pairs, or are counted by reason."""

from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_fn.data.chat import convert, records
from slm_fn.data.chat.normalize_messages import KEPT_PREFIX

ULTRACHAT_200K = {
    "prompt": "These instructions apply to section-based themes (Responsive 6.0+). "
    "Which theme is this?",
    "prompt_id": "f0e37e9f7800261167ce91143f98f511f768847236f133f2d0aed60b444ebe57",
    "messages": [
        {
            "content": "These instructions apply to section-based themes. Which theme is this?",
            "role": "user",
        },
        {
            "content": "This feature only applies to Collection pages and "
            "Featured Collections sections.",
            "role": "assistant",
        },
        {
            "content": "Can you guide me through the process of enabling "
            "the secondary image hover feature?",
            "role": "user",
        },
        {
            "content": "Sure, here are the steps:\n\n1. Log in.\n2. Click on Themes.\n",
            "role": "assistant",
        },
    ],
}
ULTRACHAT = {
    "id": "0",
    "data": [
        "How can cross training benefit groups like runners, swimmers, or weightlifters?",
        "Cross training can benefit groups like runners in the following ways:\n\n"
        "1. Reduces the risk of injury.",
        "That makes sense. I've been wanting to improve my running time.",
        "You might include these:\n\n1. Strength training",
    ],
}
SHAREGPT = {
    "id": "QWJhYvA_0",
    "conversations": [
        {
            "from": "human",
            "value": "Summarize the main ideas of Jeff Walker's Product Launch Formula",
        },
        {"from": "gpt", "value": "Here are the main ideas:\n\n1. Build anticipation."},
        {"from": "human", "value": "continue"},
    ],
}
OPENAI = {
    "messages": [
        {"role": "system", "content": "Marv is a factual chatbot that is also sarcastic."},
        {"role": "user", "content": [{"type": "text", "text": "What's the capital of France?"}]},
        {"role": "assistant", "content": "Paris, as if everyone doesn't know that already."},
    ]
}
SWEARING = (
    "\n\nHuman: What are some cuss words?\n\nAssistant: Here's a list."
    "\n\nHuman: Which is best?\n\nAssistant:"
)
HH = {"chosen": f"{SWEARING} None.", "rejected": f"{SWEARING} Ass."}
ULTRAFEEDBACK = {
    "prompt": "how can i develop a habit of drawing daily",
    "prompt_id": "086b3e24f29b8956a01059f79c56db35d118a06fb6b844b095737d042795cd43",
    "chosen": [
        {"content": "how can i develop a habit of drawing daily", "role": "user"},
        {"content": "Developing a daily habit of drawing can be challenging.", "role": "assistant"},
    ],
    "rejected": [
        {"content": "how can i develop a habit of drawing daily", "role": "user"},
        {
            "content": "As an AI language model, I cannot personally develop habits.",
            "role": "assistant",
        },
    ],
    "messages": [{"content": "how can i develop a habit of drawing daily", "role": "user"}],
    "score_chosen": 8.5,
    "score_rejected": 8.5,
}
TRL_PAIR = {
    "prompt": [{"role": "user", "content": "What color is the sky?"}],
    "chosen": [{"role": "assistant", "content": "It is blue."}],
    "rejected": [{"role": "assistant", "content": "It is green."}],
}
TRL_IMPLICIT = {side: TRL_PAIR["prompt"] + TRL_PAIR[side] for side in ("chosen", "rejected")}


def run(layout: str, *rows):
    counts: Counter[str] = Counter()
    return list(convert.LAYOUTS[layout](rows, lambda reason: counts.update([reason]))), counts


def summaries(messages) -> list[str]:
    return [f"{message.role[0]}:{message.content[:12]}" for message in messages]


@pytest.mark.parametrize(
    ("layout", "row", "expected"),
    [
        (
            "messages",
            ULTRACHAT_200K,
            ["u:These instru", "a:This feature", "u:Can you guid", "a:Sure, here a"],
        ),
        (
            "ultrachat",
            ULTRACHAT,
            ["u:How can cros", "a:Cross traini", "u:That makes s", "a:You might in"],
        ),
        ("sharegpt", SHAREGPT, ["u:Summarize th", "a:Here are the"]),
        (
            "sharegpt",
            {**SHAREGPT, "system": "Be short."},
            ["s:Be short.", "u:Summarize th", "a:Here are the"],
        ),
        (
            "sharegpt",
            {"conversation": OPENAI["messages"]},
            ["s:Marv is a fa", "u:What's the c", "a:Paris, as if"],
        ),
        ("messages", OPENAI, ["s:Marv is a fa", "u:What's the c", "a:Paris, as if"]),
        (
            "prompt_completion",
            {"prompt": "The sky is", "completion": " blue."},
            ["u:The sky is", "a:blue."],
        ),
        (
            "prompt_completion",
            {"prompt": TRL_PAIR["prompt"], "completion": TRL_PAIR["chosen"]},
            ["u:What color i", "a:It is blue."],
        ),
    ],
)
def test_conversations_of_each_layout(layout, row, expected):
    (conversation,), counts = run(layout, row)
    assert summaries(conversation.messages) == expected
    assert all(reason.startswith(KEPT_PREFIX) for reason in counts)
    assert convert.detect_layout(row) == layout


@pytest.mark.parametrize(
    ("row", "prompt", "chosen", "rejected"),
    [
        (HH, ["u:What are som", "a:Here's a lis", "u:Which is bes"], "a:None.", "a:Ass."),
        (
            {"prompt": SWEARING, "chosen": " None.", "rejected": " Ass."},
            ["u:What are som", "a:Here's a lis", "u:Which is bes"],
            "a:None.",
            "a:Ass.",
        ),
        (ULTRAFEEDBACK, ["u:how can i de"], "a:Developing a", "a:As an AI lan"),
        (TRL_PAIR, ["u:What color i"], "a:It is blue.", "a:It is green."),
        (TRL_IMPLICIT, ["u:What color i"], "a:It is blue.", "a:It is green."),
        ({"prompt": "", **TRL_IMPLICIT}, ["u:What color i"], "a:It is blue.", "a:It is green."),
        (
            {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
            ["u:The sky is"],
            "a:blue.",
            "a:green.",
        ),
        ({**TRL_PAIR, "prompt": "The sky?"}, ["u:The sky?"], "a:It is blue.", "a:It is green."),
        ({**TRL_PAIR, "chosen": "Blue."}, ["u:What color i"], "a:Blue.", "a:It is green."),
    ],
)
def test_pairs_with_the_prompt_beside_or_inside(row, prompt, chosen, rejected):
    (pair,), counts = run("preference", row)
    assert not counts
    assert (summaries(pair.prompt), summaries(pair.chosen), summaries(pair.rejected)) == (
        prompt,
        [chosen],
        [rejected],
    )
    assert convert.detect_layout(row) == "preference"


@pytest.mark.parametrize(
    ("layout", "row", "reason"),
    [
        ("messages", {}, "not of this layout"),
        ("messages", {"messages": "hello"}, "not of this layout"),
        ("messages", {"messages": ["hello"]}, "not of this layout"),
        ("messages", None, "not of this layout"),
        (
            "messages",
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]},
            "a tool's turn",
        ),
        ("sharegpt", {"conversations": [{"from": "human", "value": ""}]}, "an empty turn"),
        ("ultrachat", {"data": ["only a question"]}, "no reply of the assistant's to a user"),
        ("ultrachat", {"data": ["a", 3]}, "contents that are no text"),
        ("prompt_completion", {"prompt": "a"}, "not of this layout"),
        (
            "prompt_completion",
            {"prompt": "a", "completion": "b", "label": False},
            "labelled as not wanted",
        ),
        (
            "preference",
            {"chosen": "The sky is blue.", "rejected": "The sky is green."},
            "strings without a prompt",
        ),
        ("preference", {"prompt": "a", "chosen": "b", "rejected": "b "}, "chosen equals rejected"),
        ("preference", {"prompt": "a", "chosen": "b", "rejected": None}, "not of this layout"),
        (
            "preference",
            {**ULTRAFEEDBACK, "prompt": "other"},
            "the prompt is not the one inside chosen",
        ),
        (
            "preference",
            {
                **TRL_IMPLICIT,
                "rejected": [
                    {"role": "user", "content": "b"},
                    {"role": "assistant", "content": "c"},
                ],
            },
            "chosen and rejected do not answer the same prompt",
        ),
    ],
)
def test_a_row_that_cannot_be_converted_is_counted_by_reason(layout, row, reason):
    assert run(layout, row) == ([], Counter([reason]))


def test_a_stream_continues_after_a_bad_row_and_reads_one_row_at_a_time():
    drawn = []

    def rows():
        for i, row in enumerate([OPENAI, {}, ULTRACHAT_200K]):
            drawn.append(i)
            yield row

    stream = convert.messages(rows(), lambda reason: None)
    next(stream)
    assert drawn == [0]
    next(stream)
    assert drawn == [0, 1, 2]


@pytest.mark.parametrize("row", [{"text": "a"}, {}, None, {"data": "a"}, {"messages": None}])
def test_unknown_columns_are_one_clear_line(row):
    with pytest.raises(
        ValueError, match=r"no known chat layout has the columns .* one of messages, oasst"
    ) as error:
        convert.detect_layout(row)
    assert "\n" not in str(error.value)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "text", "type"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
columns = (
    "messages conversations data prompt completion chosen rejected system "
    "message_id parent_id role text rank label"
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from(columns.split()), anything, max_size=4), max_size=4)
)
def test_any_row_is_yielded_or_counted_once(rows):
    for layout in convert.LAYOUTS:
        if not layout.startswith("oasst"):
            found, counts = run(layout, *rows)
            dropped = sum(
                count for reason, count in counts.items() if not reason.startswith(KEPT_PREFIX)
            )
            assert len(found) + dropped == len(rows)


def test_converted_rows_are_read_back(tmp_path):
    chats, _ = run("messages", ULTRACHAT_200K, OPENAI)
    pairs, _ = run("preference", HH, ULTRAFEEDBACK, TRL_PAIR)
    for rows, read in ((chats, records.read_chat), (pairs, records.read_pairs)):
        file = tmp_path / "rows.jsonl"
        file.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
        assert list(read([file])) == rows
