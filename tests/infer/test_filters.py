"""infer/filters.py: examples worked out by hand; tests/laws/test_filters.py has the laws."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm_fn.infer import filters
from slm_fn.infer.filters import TokenHistory

LOGITS = torch.tensor([[2.0, -1.0, 0.5, 0.0]])


def test_the_repetition_penalty_counts_prompt_and_reply():
    out = filters.repetition_penalty(LOGITS, torch.tensor([2.0]), [TokenHistory((0,), (1, 1))])
    assert out.tolist() == [[1.0, -2.0, 0.5, 0.0]]


def test_frequency_and_presence_count_the_reply_alone():
    histories = [TokenHistory((0, 0), (1, 1, 2))]
    assert filters.frequency_penalty(LOGITS, torch.tensor([0.5]), histories).tolist() == [
        [2.0, -2.0, 0.0, 0.0]
    ]
    assert filters.presence_penalty(LOGITS, torch.tensor([0.5]), histories).tolist() == [
        [2.0, -1.5, 0.0, 0.0]
    ]


@pytest.mark.parametrize(
    ("history", "excluded"),
    [
        (TokenHistory((9,), (9,)), [0]),
        (TokenHistory((), ()), [0]),
        (TokenHistory((1,), ()), [0, 2]),
        (TokenHistory((1,), (2,)), [0, 3]),
        (TokenHistory((), (1, 2)), [0, 3]),
        (TokenHistory((1, 2), (2,)), [0]),
    ],
)
def test_a_bad_word_is_excluded_at_its_last_token(history, excluded):
    out = filters.bad_words(LOGITS, [((0,), (1, 2), (1, 2, 3))], [history])
    assert (out[0] == -math.inf).nonzero().flatten().tolist() == excluded


def test_bad_words_never_exclude_every_token():
    only = torch.tensor([[-math.inf, 3.0]])
    assert torch.equal(filters.bad_words(only, [((1,),)], [TokenHistory()]), only)


def test_typical_p_excludes_the_most_probable_token_if_its_surprise_is_too_low():
    # Surprise in nats 0.69, 1.39, 2.08, 2.08; the mean is 1.21, which the second is nearest.
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    assert (filters.typical_p(logits, torch.tensor([0.2])) > -math.inf).tolist() == [
        [False, True, False, False]
    ]
    assert (filters.typical_p(logits, torch.tensor([0.7])) > -math.inf).tolist() == [
        [True, True, False, False]
    ]


@given(
    st.lists(
        st.one_of(st.floats(width=32, allow_nan=False), st.integers(-2, 2).map(float)), min_size=1
    ),
    st.data(),
)
def test_the_largest_are_the_beginning_of_a_stable_sort(scores, data):
    num = data.draw(st.integers(0, len(scores)))
    ids = filters.top_ids(torch.tensor([scores]), num)
    assert ids[0].tolist() == sorted(range(len(scores)), key=lambda i: -scores[i])[:num]


def test_the_two_zeros_are_equal():
    assert filters.top_ids(torch.tensor([[-0.0, 0.0, -0.0]]), 3).tolist() == [[0, 1, 2]]
