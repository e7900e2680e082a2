"""Several conversations in a row: all of them, whole, tight, and read as if each stood alone."""

from collections import Counter
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_fn.core import tree
from slm_fn.core.grads import accumulate, value_and_grad
from slm_fn.data.batches import chat_batches, chat_packing
from slm_fn.data.batches.chat_batches import ChatExample
from slm_fn.lift.documents import isolate_documents
from slm_fn.loss.lm import next_token
from slm_fn.nn import gpt

LIMIT = 33
CONFIG = gpt.ModelConfig(
    vocab_size=40, dim=32, num_layers=2, num_heads=2, num_kv_heads=1, ffn_dim=48, context=LIMIT - 1
)


def conversation(key: int, length: int, answer: int) -> ChatExample:
    """`length` ids of which the last `answer` are trained."""
    said = torch.randint(
        6, 40, (length - 3,), generator=torch.Generator().manual_seed(key)
    ).tolist()
    return ChatExample([0, 3, *said, 5], [0] * (length - answer) + [1] * answer)


EXAMPLES = [conversation(i, 5 + (i * 7) % 26, 1 + i % 4) for i in range(24)]


def split(row: ChatExample) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The conversations of a row, cut before each start token."""
    begins = [i for i, token in enumerate(row.ids) if token == 0]
    return [
        (tuple(row.ids[a:b]), tuple(row.mask[a:b]))
        for a, b in zip(begins, [*begins[1:], len(row.ids)], strict=True)
    ]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(4, LIMIT), max_size=40), st.integers(0, 9))
def test_every_conversation_whole_in_one_row(lengths: list[int], seed: int) -> None:
    examples = [conversation(i, length, 1) for i, length in enumerate(lengths)]
    packed = chat_packing.pack(examples, LIMIT, seed)
    found = Counter(part for row in packed for part in split(row))
    assert found == Counter((tuple(example.ids), tuple(example.mask)) for example in examples)
    assert all(len(row.ids) <= LIMIT for row in packed)
    assert packed == chat_packing.pack(examples, LIMIT, seed)
    # No two rows would fit into one: what any fit that opens a row only when it must guarantees.
    sizes = sorted(len(row.ids) for row in packed)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > LIMIT


def test_rows_are_as_few_as_can_be() -> None:
    lengths = [1 + (i * 37) % 100 for i in range(5000)]
    assert len(chat_packing.best_fit(lengths, 128)) <= sum(lengths) / 128 * 1.01
    assert sorted(i for row in chat_packing.best_fit(lengths, 128, 1) for i in row) == list(
        range(5000)
    )


def test_each_goes_where_it_leaves_the_least_room() -> None:
    assert sorted(map(sorted, chat_packing.best_fit([7, 6, 3], 10))) == [[0, 2], [1]]
    assert sorted(map(sorted, chat_packing.best_fit([6, 7, 3], 10))) == [[0], [1, 2]]


def test_the_seed_chooses_among_equals() -> None:
    assert chat_packing.best_fit([5] * 40, 10, 0) != chat_packing.best_fit([5] * 40, 10, 1)
    assert chat_packing.pack([], LIMIT) == []


def test_what_does_not_fit_a_row_is_said() -> None:
    with pytest.raises(ValueError, match="an example of 40 ids does not fit a row of 33"):
        chat_packing.pack([conversation(0, 40, 1)], LIMIT)


@pytest.mark.parametrize("num_micro", [1, 3])
@pytest.mark.parametrize("pad", [1, 0, 5])
def test_loss_and_gradients_are_those_of_separate_rows(pad: int, num_micro: int) -> None:
    """Whatever the id of the padding.

    Were it the start token, its rows of segments would hold no target.
    """
    packed = chat_packing.pack(EXAMPLES, LIMIT)[:12]
    parts = [ChatExample(*part) for row in packed for part in split(row)]
    assert len(parts) > len(packed)
    apply, params = partial(gpt.apply, CONFIG), gpt.init(CONFIG, key=1)
    params = tree.map(
        lambda x: x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2)), params
    )
    vg = accumulate(num_micro)(value_and_grad(next_token(isolate_documents(0)(apply))))
    (loss, aux), grads = vg(params, chat_batches.collate(packed, pad))
    (expected, alone), grads_alone = value_and_grad(next_token(apply))(
        params, chat_batches.collate(parts, pad)
    )
    assert aux["weight"] == alone["weight"]
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    for a, b in zip(tree.leaves(grads), tree.leaves(grads_alone), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    (contaminated, _), _ = value_and_grad(next_token(apply))(
        params, chat_batches.collate(packed, pad)
    )
    assert abs(contaminated - expected) > 1e-3, "without isolation the rows would not be read apart"
