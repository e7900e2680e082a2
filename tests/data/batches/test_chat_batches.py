"""Examples in memory.

Answers are never cut, padding is known by position, every example once per epoch.
"""

from collections import Counter
from functools import partial
from itertools import groupby, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_fn.core.types import check_lm_batch, check_pair_batch
from slm_fn.data.batches import chat_batches
from slm_fn.data.batches.chat_batches import ChatExample, PairExample
from slm_fn.text.chat_template import ChatTemplate, render
from slm_fn.text.messages import Message
from slm_fn.text.training import bpe

TOKENIZER = bpe.train(["nothing to merge"], 262)
BOS, PAD, SYSTEM, USER, ASSISTANT, END = range(6)
COLLATE = partial(chat_batches.collate, pad=PAD)
COLLATE_PAIRS = partial(chat_batches.collate_pairs, pad=PAD)
PAIRS = [
    PairExample(
        ChatExample([0, 3, 9, 5, 4, 10 + i, 5], [0] * 5 + [1] * 2),
        ChatExample([0, 3, 9, 5, 4, 8, 8, 5], [0] * 5 + [1] * 3),
        (-float(i), -2.0),
    )
    for i in range(10)
]


def rendered(*contents: str, system: str | None = None) -> ChatExample:
    """A conversation of these turns: one id per character."""
    first = [] if system is None else [Message("system", system)]
    turns = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(contents)]
    return ChatExample(*render(ChatTemplate(), TOKENIZER, first + turns))


def spelled(example: ChatExample) -> str:
    names = {BOS: "^", SYSTEM: "S:", USER: "U:", ASSISTANT: "A:", END: "."}
    return "".join(names.get(i) or TOKENIZER.decode([i]) for i in example.ids)


@pytest.mark.parametrize(
    ("example", "limit", "expected"),
    [
        (rendered("abcdef", "xy"), 13, "^U:abcdef.A:xy."),
        (rendered("abcdef", "xy"), 12, "^U:bcdef.A:xy."),
        (rendered("abcdef", "xy"), 8, "^U:f.A:xy."),
        (rendered("abcdef", "xy"), 7, None),
        (rendered("ab", "xy", "cd", "zw"), 17, "^U:ab.A:xy.U:cd.A:zw."),
        (rendered("ab", "xy", "cd", "zw"), 16, "^U:b.A:xy.U:cd.A:zw."),
        # The first answer would be cut: it goes as a whole, and the turn after it keeps its role's
        # token.
        (rendered("ab", "xy", "cd", "zw"), 12, "^U:cd.A:zw."),
        (rendered("ab", "xy", "cd", "zw"), 9, "^U:cd.A:zw."),
        (rendered("ab", "xy", "cd", "zw"), 8, "^U:d.A:zw."),
        (rendered("ab", "x", system="rule"), 12, "^S:le.U:ab.A:x."),
        (rendered("abcd", "x", system="rule"), 8, "^U:cd.A:x."),
        (rendered("ab", "xy", "and then"), 9, "^U:ab.A:xy."),
    ],
)
def test_prompts_are_cut_from_the_left_and_answers_never(
    example: ChatExample, limit: int, expected: str | None
) -> None:
    kept, dropped = chat_batches.fit([example], limit)
    if expected is None:
        assert kept == []
        assert dropped == {chat_batches.REPLY_TOO_LONG: 1}
        return
    assert dropped == {}
    assert spelled(kept[0]) == expected
    assert sum(kept[0].mask) == sum(
        len(part.partition(".")[0]) + 1 for part in expected.split("A:")[1:]
    )


turns = st.lists(st.text("abc", max_size=6), min_size=1, max_size=6)


@settings(max_examples=300, deadline=None)
@given(contents=turns, limit=st.integers(2, 40), system=st.none() | st.text("s", max_size=4))
def test_what_fits_is_wellformed_short_enough_and_ends_its_answers(
    contents: list[str], limit: int, system: str | None
) -> None:
    example = rendered(*contents, system=system)
    kept, dropped = chat_batches.fit([example], limit)
    assert len(kept) + sum(dropped.values()) == 1
    if not kept:
        assert len(contents) == 1 or len(example.ids) > limit
        return
    text, (ids, mask) = spelled(kept[0]), kept[0]
    assert len(ids) == len(mask) <= limit
    assert text[:2] in ("^S", "^U")
    assert text.endswith("A:" + contents[len(contents) // 2 * 2 - 1] + ".")
    counted = "".join(
        part
        for i, part in (
            (i, spelled(ChatExample([i], [1]))) for i, m in zip(ids, mask, strict=True) if m
        )
    )
    assert counted == "".join(part[: part.index(".") + 1] for part in text.split("A:")[1:])


def test_examples_with_nothing_to_learn_are_counted_out() -> None:
    silent = rendered("only a question")
    kept, dropped = chat_batches.fit([silent, rendered("a", "b")], 99)
    assert kept == [rendered("a", "b")]
    assert dropped == {chat_batches.NOTHING_TO_LEARN: 1}
    same = PairExample(rendered("q", "a"), rendered("q", "a"))
    assert chat_batches.fit_pairs([same], 99) == ([], {chat_batches.EQUAL_REPLIES: 1})


def test_both_sides_of_a_pair_keep_the_same_prompt() -> None:
    pair = PairExample(rendered("abcdef", "x"), rendered("abcdef", "xyz"), (-1.0, -2.0))
    kept, _ = chat_batches.fit_pairs([pair], 12)
    assert [spelled(side) for side in kept[0][:2]] == ["^U:cdef.A:x.", "^U:cdef.A:xyz."]
    assert kept[0].reference == (-1.0, -2.0)
    assert chat_batches.fit_pairs([pair], 8) == ([], {chat_batches.REPLY_TOO_LONG: 1})


def test_padding_is_known_by_position_even_where_its_id_is_an_answers() -> None:
    """With the end of turn as padding, the end is still supervised and the padding is not."""
    examples = [rendered("a", "bc"), rendered("a", "b" * 20)]
    batch = check_lm_batch(chat_batches.collate(examples, pad=END))
    assert batch.tokens.shape == (2, 33)
    for row, example in enumerate(examples):
        n = len(example.ids)
        assert batch.tokens[row].tolist() == [*example.ids, *[END] * (33 - n)]
        assert batch.mask[row].tolist() == [*map(float, example.mask[1:]), *[0.0] * (33 - n)]
        assert batch.mask[row, n - 2] == 1
        assert batch.tokens[row, n - 1] == END


@pytest.mark.parametrize(("length", "targets"), [(2, 16), (17, 16), (18, 32)])
def test_rows_are_padded_to_a_multiple(length: int, targets: int) -> None:
    assert chat_batches.collate([ChatExample([7] * length, [1] * length)], PAD).mask.shape == (
        1,
        targets,
    )


def test_every_example_once_per_epoch_in_another_order_each() -> None:
    examples = [ChatExample([0, i], [0, 1]) for i in range(10)]
    drawn_at = partial(chat_batches.batch, COLLATE, examples, 0, 4)
    drawn = [int(t) for k in range(10) for t in drawn_at(k).tokens[:, 1]]
    epochs = [drawn[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4
    later = drawn_at(7)
    assert later.tokens[:, 1].tolist() == drawn[28:32]
    halves = [drawn_at(7, rank, 2).tokens for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), later.tokens)


def test_pairs_carry_their_own_reference() -> None:
    seen: Counter[int] = Counter()
    for k in range(5):
        batch = check_pair_batch(chat_batches.batch(COLLATE_PAIRS, PAIRS, 3, 2, k))
        for row in range(2):
            i = int(batch.chosen.tokens[row, 5]) - 10
            seen[i] += 1
            assert batch.reference[row].tolist() == [-float(i), -2.0]
            assert batch.rejected.mask[row].sum() == 3
    assert seen == Counter(range(10))


def test_no_examples_are_said_plainly() -> None:
    with pytest.raises(ValueError, match="from 0 items"):
        chat_batches.batch(COLLATE, [], 0, 2, 0)


words = st.lists(st.text(max_size=8), min_size=2, max_size=7)


def answers(side: ChatExample) -> list[list[int]]:
    """The runs of ids that are trained."""
    runs = groupby(zip(side.ids, side.mask, strict=True), key=lambda pair: pair[1])
    return [[i for i, _ in run] for counted, run in runs if counted]


@settings(max_examples=1000, deadline=None)
@given(contents=words, limit=st.integers(2, 60))
def test_a_supervised_end_for_every_answer_that_is_kept_and_every_kept_answer_whole(
    contents: list[str], limit: int
) -> None:
    whole = rendered(*contents)
    kept, _ = chat_batches.fit([whole], limit)
    for short in kept:
        ends = sum(i == END and m == 1 for i, m in zip(short.ids, short.mask, strict=True))
        assert ends == sum(i == ASSISTANT for i in short.ids) == len(answers(short))
        assert answers(short) == answers(whole)[-ends:]
        assert all(run.count(END) == 1 and run[-1] == END for run in answers(short))
        roles = [i for i in short.ids if i in (SYSTEM, USER, ASSISTANT)]
        assert all(a != b for a, b in pairwise(roles))
        assert short.ids.count(END) == len(roles), (
            "an end of turn was cut off its turn, or a role off its end"
        )


@settings(max_examples=1000, deadline=None)
@given(words, words, words, st.integers(2, 60))
def test_pairs_of_several_turns_keep_both_answers_whole(
    prompt: list[str], one: list[str], other: list[str], limit: int
) -> None:
    prompt, sides = (
        prompt[: (len(prompt) - 1) // 2 * 2 + 1],
        [side[: (len(side) - 1) // 2 * 2 + 1] for side in (one, other)],
    )
    start = len(rendered(*prompt).ids) + 1
    whole = [rendered(*prompt, *side) for side in sides]
    pair = PairExample(*(ChatExample(ids, [0] * start + list(mask[start:])) for ids, mask in whole))
    kept, _ = chat_batches.fit_pairs([pair], limit)
    for short in kept:
        assert answers(short.chosen) == answers(pair.chosen)
        assert answers(short.rejected) == answers(pair.rejected)
        begun = [side.ids[: side.mask.index(1)] for side in short[:2]]
        assert begun[0] == begun[1]
        assert max(len(side.ids) for side in short[:2]) <= limit


def test_compact_examples_are_cut_and_collated_as_lists_are() -> None:
    example = rendered("abcdef", "xy", "cd", "zw")
    small = chat_batches.compact(example)
    for limit in (9, 12, 16, 99):
        (a,), (b,) = chat_batches.fit([example], limit)[0], chat_batches.fit([small], limit)[0]
        assert (list(a.ids), list(a.mask)) == (list(b.ids), list(b.mask))
    one, two = chat_batches.collate([example], PAD), chat_batches.collate([small], PAD)
    assert torch.equal(one.tokens, two.tokens)
    assert torch.equal(one.mask, two.mask)


def test_the_report_counts_what_batches_hold() -> None:
    examples = [rendered("q" * (i % 7), "a" * (i % 23), "more", "b") for i in range(50)]
    found = chat_batches.measure(examples, batch_size=8, seed=3)
    batches = [
        chat_batches.batch(COLLATE, examples, 3, 8, k) for k in range(6)
    ]  # the last of an epoch has two rows
    rest = [i for _, i in chat_batches.batch_items(3, 6, 8, 50)][:2]
    batches.append(chat_batches.collate([examples[i] for i in rest], PAD))
    cells, trained = (
        sum(count(batch) for batch in batches)
        for count in (lambda b: b.mask.numel(), lambda b: b.mask.sum())
    )
    real = sum(len(example.ids) - 1 for example in examples)
    assert found.padding == pytest.approx(1 - real / cells)
    assert found.trained_tokens == trained == round(found.trained * real)
    assert (found.examples, found.replies, found.tokens) == (50, 100, real + 50)
    assert (
        found.longest == max(len(example.ids) for example in examples) >= found.length_of_90_percent
    )
    assert f"{found.padding:.1%} padding" in chat_batches.summarize(found)
