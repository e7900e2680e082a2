"""infer/filters.py: figures worked out by hand; the laws of all filters are in tests/laws/test_filters.py."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm_fn.infer import filters
from slm_fn.infer.filters import Said

LOGITS = torch.tensor([[2.0, -1.0, 0.5, 0.0]])


def test_the_repetition_penalty_takes_prompt_and_reply():
    out = filters.repetition_penalty(LOGITS, torch.tensor([2.0]), [Said((0,), (1, 1))])
    assert out.tolist() == [[1.0, -2.0, 0.5, 0.0]]


def test_frequency_and_presence_count_the_reply_alone():
    said = [Said((0, 0), (1, 1, 2))]
    assert filters.frequency_penalty(LOGITS, torch.tensor([0.5]), said).tolist() == [[2.0, -2.0, 0.0, 0.0]]
    assert filters.presence_penalty(LOGITS, torch.tensor([0.5]), said).tolist() == [[2.0, -1.5, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("said", "forbidden"),
    [
        (Said((9,), (9,)), [0]),
        (Said((), ()), [0]),
        (Said((1,), ()), [0, 2]),
        (Said((1,), (2,)), [0, 3]),
        (Said((), (1, 2)), [0, 3]),
        (Said((1, 2), (2,)), [0]),
    ],
)
def test_a_bad_word_is_forbidden_at_its_last_token(said, forbidden):
    out = filters.bad_words(LOGITS, [((0,), (1, 2), (1, 2, 3))], [said])
    assert (out[0] == -math.inf).nonzero().flatten().tolist() == forbidden


def test_bad_words_never_leave_nothing():
    only = torch.tensor([[-math.inf, 3.0]])
    assert torch.equal(filters.bad_words(only, [((1,),)], [Said()]), only)


def test_typical_leaves_the_likeliest_out_where_it_says_too_little():
    # Surprise in nats 0.69, 1.39, 2.08, 2.08; the mean is 1.21, which the second is nearest.
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    assert (filters.typical_p(logits, torch.tensor([0.2])) > -math.inf).tolist() == [[False, True, False, False]]
    assert (filters.typical_p(logits, torch.tensor([0.7])) > -math.inf).tolist() == [[True, True, False, False]]


@given(st.lists(st.one_of(st.floats(width=32, allow_nan=False), st.integers(-2, 2).map(float)), min_size=1), st.data())
def test_the_largest_are_the_beginning_of_a_stable_sort(scores, data):
    num = data.draw(st.integers(0, len(scores)))
    found = filters.largest(torch.tensor([scores]), num)
    assert found[0].tolist() == sorted(range(len(scores)), key=lambda i: -scores[i])[:num]


def test_the_two_zeros_are_equals():
    assert filters.largest(torch.tensor([[-0.0, 0.0, -0.0]]), 3).tolist() == [[0, 1, 2]]
