"""Attention against a loop that could not be plainer, and against itself with its heads repeated."""

import pytest
import torch

from slm_fn.core import random
from slm_fn.nn.attention import add_alibi, as_bias, attend, causal_mask, choose, segment_starts


def draw(num_heads, num_kv_heads, T=5, S=7):
    q = random.normal(1, (2, T, num_heads, 8))
    k, v = (random.normal(key, (2, S, num_kv_heads, 8)) for key in (2, 3))
    return q, k, v, as_bias(causal_mask(torch.tensor([[0, 1, 2, 3, 4], [2, 3, 4, 5, 6]])[:, :T], S), q.dtype)


def by_hand(q, k, v, bias, scale=8**-0.5, softcap=0.0):
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            for h in range(q.shape[2]):
                kv_head = h * k.shape[2] // q.shape[2]
                scores = k[b, :, kv_head] @ q[b, t, h] * scale
                scores = softcap * torch.tanh(scores / softcap) if softcap else scores
                weights = (scores + bias[b, h % bias.shape[1], t]).exp()
                out[b, t, h] = weights / weights.sum() @ v[b, :, kv_head]
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


def test_a_window_hides_what_lies_before_it():
    assert causal_mask(torch.tensor([[1, 2, 3]]), 4, window=2).int().tolist() == [
        [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]],
    ]


def test_alibi_falls_by_each_head_s_slope_with_distance():
    seen = causal_mask(torch.tensor([[1, 2]]), 3)
    bias = add_alibi(as_bias(seen, torch.float32), torch.tensor([[1, 2]]), [0.5, 0.25])
    away = float("-inf")
    assert bias.tolist() == [[[[-0.5, 0, away], [-1, -0.5, 0]], [[-0.25, 0, away], [-0.5, -0.25, 0]]]]


HEADS = [(4, 4), (4, 2), (4, 1), (6, 3)]


@pytest.mark.parametrize("backend", ["plain", "fused"])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), HEADS)
def test_attention_is_what_the_loop_says(num_heads, num_kv_heads, backend, purely):
    q, k, v, bias = draw(num_heads, num_kv_heads)
    assert (purely(attend, q, k, v, bias, backend) - by_hand(q, k, v, bias)).abs().max() < 1e-5
    sloped = bias - random.uniform(5, (2, num_heads, 5, 7)) * 3
    want = by_hand(q, k, v, sloped, scale=0.9)
    assert (purely(attend, q, k, v, sloped, backend, 0.9) - want).abs().max() < 1e-5


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), HEADS)
def test_the_fused_kernel_is_causal_by_itself(num_heads, num_kv_heads):
    q, k, v, _ = draw(num_heads, num_kv_heads, S=5)
    bias = as_bias(causal_mask(torch.arange(5)[None], 5), q.dtype)
    assert (attend(q, k, v, None, "fused") - attend(q, k, v, bias, "plain")).abs().max() < 1e-5
    with pytest.raises(AssertionError, match="hides keys by a bias"):
        attend(q, k, v, None, "plain")


def test_a_soft_cap_bends_scores_before_they_are_hidden():
    q, k, v, bias = draw(6, 3)
    capped = attend(3 * q, k, v, bias, softcap=1.5)
    assert (capped - by_hand(3 * q, k, v, bias, softcap=1.5)).abs().max() < 1e-5
    assert (capped - attend(3 * q, k, v, bias)).abs().max() > 0.1


def test_the_backend_is_one_that_can_do_it():
    x = torch.ones(1)
    assert [choose(backend, x) for backend in ("auto", "plain", "fused")] == ["plain", "plain", "fused"]
    assert choose("auto", x, softcap=9.0) == "plain"
    with pytest.raises(ValueError, match="attn_softcap needs the plain attention backend"):
        choose("fused", x, softcap=9.0)


@pytest.mark.parametrize("backend", ["plain", "fused"])
def test_grouped_is_full_with_repeated_heads(backend):
    q, k, v, bias = draw(6, 2)
    repeated = [x.repeat_interleave(3, dim=2) for x in (k, v)]
    assert (attend(q, k, v, bias, backend) - attend(q, *repeated, bias, backend)).abs().max() < 1e-6


@pytest.mark.parametrize("backend", ["plain", "fused"])
def test_hidden_keys_change_nothing_whatever_they_hold(backend, same):
    q, k, v, bias = draw(4, 2)
    poisoned = [
        torch.where(torch.arange(7)[:, None, None] > 6 - torch.tensor([2, 0])[:, None, None, None], 1e6, x)
        for x in (k, v)
    ]
    assert not same(poisoned[0], k)
    assert (attend(q, k, v, bias, backend) - attend(q, *poisoned, bias, backend))[0].abs().max() < 1e-6


def test_plain_attention_allows_forward_mode():
    q, k, v, bias = draw(4, 2)
    _, slope = torch.func.jvp(lambda q: attend(q, k, v, bias, "plain"), (q,), (q,))
    gap = (attend(q * 1.001, k, v, bias, "plain") - attend(q * 0.999, k, v, bias, "plain")) / 0.002
    assert (slope - gap).abs().max() < 1e-3
