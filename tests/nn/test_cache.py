"""The key/value cache: rows of their own length, written out of place, refused before they overflow."""

import pytest
import torch

from slm_fn.core import random
from slm_fn.nn import cache, gpt


def filled():
    empty = cache.init(2, 3, 5, 2, 4, torch.float32, torch.device("cpu"))
    return cache.KVCache(random.normal(0, empty.k.shape), random.normal(1, empty.v.shape), torch.tensor([0, 3, 5]))


def test_an_empty_cache_has_the_legend_s_order():
    empty = cache.init(2, 3, 5, 1, 4, torch.bfloat16, torch.device("cpu"))
    assert empty.k.shape == empty.v.shape == (2, 3, 5, 1, 4)
    assert empty.k.dtype == torch.bfloat16
    assert empty.length.tolist() == [0, 0, 0]


def test_write_puts_each_row_at_its_own_place(purely):
    buffer, new = torch.zeros(2, 5, 1, 1), torch.tensor([[1.0, 2.0], [3.0, 4.0]])[..., None, None]
    written = purely(cache.write, buffer, new, torch.tensor([[0, 1], [3, 4]]))
    assert written.flatten(1).tolist() == [[1, 2, 0, 0, 0], [0, 0, 0, 3, 4]]


def test_the_buffer_s_dtype_rules():
    written = cache.write(
        torch.zeros(1, 2, 1, 1, dtype=torch.bfloat16), torch.full((1, 1, 1, 1), 1.001), torch.tensor([[1]])
    )
    assert written.dtype == torch.bfloat16
    assert written.flatten().tolist() == [0, 1]


def test_what_does_not_fit_is_refused_before_it_is_written(config, rough):
    params, tokens = rough(config), torch.zeros(2, 3, dtype=torch.long)
    past = gpt.init_cache(config, params, batch=2, size=8)._replace(length=torch.tensor([1, 6]))
    cache.check_room(past, 2)
    with pytest.raises(ValueError, match="holds 8 tokens; 6 are there and 3 more do not fit"):
        cache.check_room(past, 3)
    with pytest.raises(ValueError, match="9 tokens do not fit the cache of 8"):
        gpt.apply(config, params, tokens.new_zeros(2, 9), past)
    # Without the check the write itself refuses, and what was there is there.
    before = past.k.clone()
    with pytest.raises(RuntimeError, match="out of bounds"):
        gpt.apply(config, params, tokens, past)
    assert torch.equal(past.k, before)


def test_rows_are_taken_in_any_order_and_reset(purely):
    past = filled()
    forked = purely(cache.take, past, torch.tensor([2, 2, 1]))
    assert forked.length.tolist() == [5, 5, 3]
    assert torch.equal(forked.k, past.k[:, [2, 2, 1]])
    assert torch.equal(forked.v, past.v[:, [2, 2, 1]])
    emptied = purely(cache.reset, past, torch.tensor([1]))
    assert emptied.length.tolist() == [0, 0, 5]
    assert emptied.k is past.k


def test_slots_are_written_over_and_hold_what_a_pure_cache_would(config, rough):
    params, tokens = rough(config), torch.arange(6).view(2, 3)
    pure = gpt.init_cache(config, params, batch=3, size=8)
    slots = cache.Slots(pure.k.clone(), pure.v.clone(), pure.length)
    part = cache.view(slots, 2, 6)
    wanted, after = gpt.apply(config, params, tokens, cache.take(pure, torch.arange(2)))
    got, grown = gpt.apply(config, params, tokens, part)
    torch.testing.assert_close(got, wanted)
    assert isinstance(grown, cache.Slots)
    assert grown.k.data_ptr() == slots.k.data_ptr()
    assert grown.length.tolist() == [3, 3]
    torch.testing.assert_close(slots.k[:, :2], after.k)
    torch.testing.assert_close(slots.v[:, :2], after.v)
    assert not slots.k[:, 2].any()
