"""Attention against a plain loop, and grouped heads against repeated heads."""

import pytest
import torch

from slm_fn.core import random
from slm_fn.nn.attention import (
    add_alibi,
    attend,
    causal_mask,
    mask_to_bias,
    resolve_backend,
    segment_starts,
)


def draw(num_heads, num_kv_heads, T=5, S=7):
    q = random.normal(1, (2, T, num_heads, 8))
    k, v = (random.normal(key, (2, S, num_kv_heads, 8)) for key in (2, 3))
    positions = torch.tensor([[0, 1, 2, 3, 4], [2, 3, 4, 5, 6]])[:, :T]
    return q, k, v, mask_to_bias(causal_mask(positions, S), q.dtype)


def attend_by_loop(q, k, v, bias, scale=8**-0.5, softcap=0.0):
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            for h in range(q.shape[2]):
                kv_head = h * k.shape[2] // q.shape[2]
                scores = k[b, :, kv_head] @ q[b, t, h] * scale
                if softcap:
                    scores = softcap * torch.tanh(scores / softcap)
                weights = (scores + bias[b, h % bias.shape[1], t]).exp()
                out[b, t, h] = weights / weights.sum() @ v[b, :, kv_head]
    return out


def max_difference(a, b):
    return (a - b).abs().max()


def test_a_query_attends_to_its_own_position_and_before():
    assert causal_mask(torch.tensor([[0, 1], [2, 3]]), 4).int().tolist() == [
        [[1, 0, 0, 0], [1, 1, 0, 0]],
        [[1, 1, 1, 0], [1, 1, 1, 1]],
    ]


def test_the_mask_hides_positions_before_the_segment():
    mask = causal_mask(torch.tensor([[0, 1, 2]]), 3, torch.tensor([[0, 1, 1]]))
    assert mask.int().tolist() == [[[1, 0, 0], [0, 1, 0], [0, 1, 1]]]


def test_a_segment_is_a_run_of_equal_ids():
    starts = segment_starts(torch.tensor([[4, 4, 4], [0, 1, 0], [1, 2, 2]]))
    assert starts.tolist() == [[0, 0, 0], [0, 1, 2], [0, 1, 1]]
    assert segment_starts(torch.zeros(2, 1, dtype=torch.long)).tolist() == [[0], [0]]


def test_a_window_hides_positions_before_it():
    mask = causal_mask(torch.tensor([[1, 2, 3]]), 4, window=2)
    assert mask.int().tolist() == [[[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]]


def test_alibi_subtracts_each_head_s_slope_times_the_distance():
    mask = causal_mask(torch.tensor([[1, 2]]), 3)
    bias = add_alibi(mask_to_bias(mask, torch.float32), torch.tensor([[1, 2]]), [0.5, 0.25])
    hidden = float("-inf")
    assert bias.tolist() == [
        [[[-0.5, 0, hidden], [-1, -0.5, 0]], [[-0.25, 0, hidden], [-0.5, -0.25, 0]]]
    ]


HEADS = [(4, 4), (4, 2), (4, 1), (6, 3)]


@pytest.mark.parametrize("backend", ["plain", "fused"])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), HEADS)
def test_attention_equals_the_loop(num_heads, num_kv_heads, backend, purely):
    q, k, v, bias = draw(num_heads, num_kv_heads)
    assert (
        max_difference(purely(attend, q, k, v, bias, backend), attend_by_loop(q, k, v, bias)) < 1e-5
    )
    sloped = bias - random.uniform(5, (2, num_heads, 5, 7)) * 3
    want = attend_by_loop(q, k, v, sloped, scale=0.9)
    assert max_difference(purely(attend, q, k, v, sloped, backend, 0.9), want) < 1e-5


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), HEADS)
def test_the_fused_kernel_without_a_bias_is_causal(num_heads, num_kv_heads):
    q, k, v, _ = draw(num_heads, num_kv_heads, S=5)
    bias = mask_to_bias(causal_mask(torch.arange(5)[None], 5), q.dtype)
    assert max_difference(attend(q, k, v, None, "fused"), attend(q, k, v, bias, "plain")) < 1e-5
    with pytest.raises(AssertionError, match="plain attention backend needs the mask as a bias"):
        attend(q, k, v, None, "plain")


def test_a_soft_cap_bounds_scores_before_the_mask():
    q, k, v, bias = draw(6, 3)
    capped = attend(3 * q, k, v, bias, softcap=1.5)
    assert max_difference(capped, attend_by_loop(3 * q, k, v, bias, softcap=1.5)) < 1e-5
    assert max_difference(capped, attend(3 * q, k, v, bias)) > 0.1


def test_the_backend_supports_what_is_requested():
    x = torch.ones(1)
    resolved = [resolve_backend(backend, x) for backend in ("auto", "plain", "fused")]
    assert resolved == ["plain", "plain", "fused"]
    assert resolve_backend("auto", x, softcap=9.0) == "plain"
    with pytest.raises(ValueError, match="attn_softcap needs the plain attention backend"):
        resolve_backend("fused", x, softcap=9.0)


@pytest.mark.parametrize("backend", ["plain", "fused"])
def test_grouped_heads_equal_repeated_heads(backend):
    q, k, v, bias = draw(6, 2)
    repeated = [x.repeat_interleave(3, dim=2) for x in (k, v)]
    full = attend(q, *repeated, bias, backend)
    assert max_difference(attend(q, k, v, bias, backend), full) < 1e-6


@pytest.mark.parametrize("backend", ["plain", "fused"])
def test_hidden_keys_change_nothing_whatever_their_values(backend, same):
    q, k, v, bias = draw(4, 2)
    last_visible = 6 - torch.tensor([2, 0])[:, None, None, None]
    is_hidden = torch.arange(7)[:, None, None] > last_visible
    poisoned = [torch.where(is_hidden, 1e6, x) for x in (k, v)]
    assert not same(poisoned[0], k)
    difference = attend(q, k, v, bias, backend) - attend(q, *poisoned, bias, backend)
    assert difference[0].abs().max() < 1e-6


def test_plain_attention_allows_forward_mode():
    q, k, v, bias = draw(4, 2)
    _, slope = torch.func.jvp(lambda q: attend(q, k, v, bias, "plain"), (q,), (q,))
    gap = (attend(q * 1.001, k, v, bias, "plain") - attend(q * 0.999, k, v, bias, "plain")) / 0.002
    assert max_difference(slope, gap) < 1e-3
