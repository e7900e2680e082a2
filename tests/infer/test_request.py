"""infer/request.py: errors of invalid requests, and log probabilities."""

import pytest
import torch

from slm_fn.infer import request
from slm_fn.infer.request import ContextOverflow, Request
from slm_fn.infer.sampling import SampleConfig


def test_a_prompt_without_room_is_rejected_in_openais_words():
    request.check_prompt(7, 8, 100)
    with pytest.raises(
        ContextOverflow,
        match=r"context length is 8 tokens. However, you requested 108 tokens \(8 in",
    ):
        request.check_prompt(8, 8, 100)


@pytest.mark.parametrize(
    ("invalid", "error"),
    [
        (Request(()), "at least one token"),
        (Request((1, 9)), "token 9; the vocabulary has 9"),
        (Request((-1, 1)), "token -1"),
        (Request((1,), max_tokens=-1), "max_tokens must be at least 0"),
        (Request((1,), SampleConfig(logit_bias={9: 1.0})), "logit_bias names token 9"),
    ],
)
def test_an_invalid_request_is_rejected(invalid, error):
    with pytest.raises(ValueError, match=error):
        request.check_request(invalid, 8, 9)


def test_logprobs_are_the_logarithm_of_the_softmax():
    logits = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 5.0]])
    for row, token, one in zip(
        logits.log_softmax(-1), (0, 2), request.token_logprobs(logits, (0, 2), 2), strict=True
    ):
        assert one.logprob == row[token].item()
        assert one.top == tuple((int(i), row[i].item()) for i in row.topk(2).indices)
    assert request.token_logprobs(logits[:0], (), 2) == ()
    assert [one.top for one in request.token_logprobs(logits, (0, 2), 0)] == [(), ()]
