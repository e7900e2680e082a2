"""Attention against a loop that could not be plainer, and against itself with its heads repeated."""

import pytest
import torch

from slm_fn.core import random
from slm_fn.nn.attention import attend, causal_mask, segment_starts


def draw(num_heads, num_kv_heads, T=5, S=7):
    q = random.normal(1, (2, T, num_heads, 8))
    k, v = (random.normal(key, (2, S, num_kv_heads, 8)) for key in (2, 3))
    return q, k, v, causal_mask(torch.tensor([[0, 1, 2, 3, 4], [2, 3, 4, 5, 6]])[:, :T], S)


def by_hand(q, k, v, mask):
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            for h in range(q.shape[2]):
                kv_head = h * k.shape[2] // q.shape[2]
                seen = [s for s in range(k.shape[1]) if mask[b, t, s]]
                scores = torch.stack([q[b, t, h] @ k[b, s, kv_head] / 8**0.5 for s in seen]).softmax(0)
                out[b, t, h] = sum(p * v[b, s, kv_head] for p, s in zip(scores, seen, strict=True))
    return out


def test_the_mask_shows_a_place_itself_and_what_came_before():
    assert causal_mask(torch.tensor([[0, 1], [2, 3]]), 4).int().tolist() == [
        [[1, 0, 0, 0], [1, 1, 0, 0]],
        [[1, 1, 1, 0], [1, 1, 1, 1]],
    ]


def test_the_mask_hides_what_lies_before_the_segment():
    assert causal_mask(torch.tensor([[0, 1, 2]]), 3, torch.tensor([[0, 1, 1]])).int().tolist() == [
        [[1, 0, 0], [0, 1, 0], [0, 1, 1]],
    ]


def test_a_segment_is_a_run_of_one_number():
    starts = segment_starts(torch.tensor([[4, 4, 4], [0, 1, 0], [1, 2, 2]]))
    assert starts.tolist() == [[0, 0, 0], [0, 1, 2], [0, 1, 1]]
    assert segment_starts(torch.zeros(2, 1, dtype=torch.long)).tolist() == [[0], [0]]


@pytest.mark.parametrize("backend", ["plain", "fused", "auto"])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (4, 1), (6, 3)])
def test_attention_is_what_the_loop_says(num_heads, num_kv_heads, backend, purely):
    given = draw(num_heads, num_kv_heads)
    assert (purely(attend, *given, backend) - by_hand(*given)).abs().max() < 1e-5


@pytest.mark.parametrize("backend", ["plain", "fused"])
def test_grouped_is_full_with_repeated_heads(backend):
    q, k, v, mask = draw(6, 2)
    repeated = [x.repeat_interleave(3, dim=2) for x in (k, v)]
    assert (attend(q, k, v, mask, backend) - attend(q, *repeated, mask, backend)).abs().max() < 1e-6


@pytest.mark.parametrize("backend", ["plain", "fused"])
def test_hidden_keys_change_nothing_whatever_they_hold(backend, same):
    q, k, v, mask = draw(4, 2)
    poisoned = [
        torch.where(torch.arange(7)[:, None, None] > 6 - torch.tensor([2, 0])[:, None, None, None], 1e6, x)
        for x in (k, v)
    ]
    assert not same(poisoned[0], k)
    assert (attend(q, k, v, mask, backend) - attend(q, *poisoned, mask, backend))[0].abs().max() < 1e-6


def test_plain_attention_allows_forward_mode():
    q, k, v, mask = draw(4, 2)
    _, slope = torch.func.jvp(lambda q: attend(q, k, v, mask, "plain"), (q,), (q,))
    gap = (attend(q * 1.001, k, v, mask, "plain") - attend(q * 0.999, k, v, mask, "plain")) / 0.002
    assert (slope - gap).abs().max() < 1e-3
