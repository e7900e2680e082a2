"""Examples in memory: answers are never cut, padding is known by position, every example once per epoch."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_fn.core.types import check_lm_batch, check_pair_batch
from slm_fn.data import pairs
from slm_fn.data.pairs import ChatExample, PairExample
from slm_fn.text import bpe
from slm_fn.text.chat import ChatTemplate, Message, render

TOKENIZER = bpe.train(["nothing to merge"], 262)
BOS, PAD, SYSTEM, USER, ASSISTANT, END = range(6)
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
        # The first answer would be cut: it goes as a whole, and the turn after it keeps its role's token.
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
    kept, dropped = pairs.fit([example], limit)
    if expected is None:
        assert kept == []
        assert dropped == {pairs.TOO_LONG: 1}
        return
    assert dropped == {}
    assert spelled(kept[0]) == expected
    assert sum(kept[0].mask) == sum(len(part.partition(".")[0]) + 1 for part in expected.split("A:")[1:])


turns = st.lists(st.text("abc", max_size=6), min_size=1, max_size=6)


@settings(max_examples=300, deadline=None)
@given(contents=turns, limit=st.integers(2, 40), system=st.none() | st.text("s", max_size=4))
def test_what_fits_is_wellformed_short_enough_and_ends_its_answers(
    contents: list[str], limit: int, system: str | None
) -> None:
    example = rendered(*contents, system=system)
    kept, dropped = pairs.fit([example], limit)
    assert len(kept) + sum(dropped.values()) == 1
    if not kept:
        assert len(contents) == 1 or len(example.ids) > limit
        return
    text, (ids, mask) = spelled(kept[0]), kept[0]
    assert len(ids) == len(mask) <= limit
    assert text[:2] in ("^S", "^U")
    assert text.endswith("A:" + contents[len(contents) // 2 * 2 - 1] + ".")
    counted = "".join(
        part for i, part in ((i, spelled(ChatExample([i], [1]))) for i, m in zip(ids, mask, strict=True) if m)
    )
    assert counted == "".join(part[: part.index(".") + 1] for part in text.split("A:")[1:])


def test_examples_with_nothing_to_learn_are_counted_out() -> None:
    silent = rendered("only a question")
    kept, dropped = pairs.fit([silent, rendered("a", "b")], 99)
    assert kept == [rendered("a", "b")]
    assert dropped == {pairs.NOTHING: 1}
    same = PairExample(rendered("q", "a"), rendered("q", "a"))
    assert pairs.fit([same], 99) == ([], {pairs.SAME: 1})


def test_both_sides_of_a_pair_keep_the_same_prompt() -> None:
    pair = PairExample(rendered("abcdef", "x"), rendered("abcdef", "xyz"), (-1.0, -2.0))
    kept, _ = pairs.fit([pair], 12)
    assert [spelled(side) for side in kept[0][:2]] == ["^U:cdef.A:x.", "^U:cdef.A:xyz."]
    assert kept[0].reference == (-1.0, -2.0)
    assert pairs.fit([pair], 8) == ([], {pairs.TOO_LONG: 1})


def test_padding_is_known_by_position_even_where_its_id_is_an_answers() -> None:
    """With the end of turn as padding, the end is still supervised and the padding is not."""
    examples = [rendered("a", "bc"), rendered("a", "b" * 20)]
    batch = check_lm_batch(pairs.collate(examples, pad=END))
    assert batch.tokens.shape == (2, 33)
    for row, example in enumerate(examples):
        n = len(example.ids)
        assert batch.tokens[row].tolist() == [*example.ids, *[END] * (33 - n)]
        assert batch.mask[row].tolist() == [*map(float, example.mask[1:]), *[0.0] * (33 - n)]
        assert batch.mask[row, n - 2] == 1
        assert batch.tokens[row, n - 1] == END


@pytest.mark.parametrize(("length", "targets"), [(2, 16), (17, 16), (18, 32)])
def test_rows_are_padded_to_a_multiple(length: int, targets: int) -> None:
    assert pairs.collate([ChatExample([7] * length, [1] * length)], PAD).mask.shape == (1, targets)


def test_every_example_once_per_epoch_in_another_order_each() -> None:
    examples = [ChatExample([0, i], [0, 1]) for i in range(10)]
    drawn = [int(t) for k in range(10) for t in pairs.chat_batch(examples, 0, k, 4, PAD).tokens[:, 1]]
    epochs = [drawn[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4
    later = pairs.chat_batch(examples, 0, 7, 4, PAD)
    assert later.tokens[:, 1].tolist() == drawn[28:32]
    halves = [pairs.chat_batch(examples, 0, 7, 4, PAD, rank, 2).tokens for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), later.tokens)


def test_pairs_carry_their_own_reference() -> None:
    seen: Counter[int] = Counter()
    for k in range(5):
        batch = check_pair_batch(pairs.pair_batch(PAIRS, 3, k, 2, PAD))
        for row in range(2):
            i = int(batch.chosen.tokens[row, 5]) - 10
            seen[i] += 1
            assert batch.reference[row].tolist() == [-float(i), -2.0]
            assert batch.rejected.mask[row].sum() == 3
    assert seen == Counter(range(10))


def test_no_examples_are_said_plainly() -> None:
    with pytest.raises(ValueError, match="from 0 items"):
        pairs.chat_batch([], 0, 0, 2, PAD)
