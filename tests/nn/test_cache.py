"""The key/value cache: sequences of different lengths, pure writes and writes in place."""

import pytest
import torch

from slm_fn.nn import cache, gpt


def test_an_empty_cache_has_the_documented_shape():
    empty = cache.init(2, 3, 5, 1, 4, torch.bfloat16, torch.device("cpu"))
    assert empty.k.shape == empty.v.shape == (2, 3, 5, 1, 4)
    assert empty.k.dtype == torch.bfloat16
    assert empty.length.tolist() == [0, 0, 0]


def test_write_stores_each_sequence_at_its_own_positions(purely):
    buffer, new = torch.zeros(2, 5, 1, 1), torch.tensor([[1.0, 2.0], [3.0, 4.0]])[..., None, None]
    written = purely(cache.write, buffer, new, torch.tensor([[0, 1], [3, 4]]))
    assert written.flatten(1).tolist() == [[1, 2, 0, 0, 0], [0, 0, 0, 3, 4]]


def test_entries_are_cast_to_the_buffer_s_dtype():
    written = cache.write(
        torch.zeros(1, 2, 1, 1, dtype=torch.bfloat16),
        torch.full((1, 1, 1, 1), 1.001),
        torch.tensor([[1]]),
    )
    assert written.dtype == torch.bfloat16
    assert written.flatten().tolist() == [0, 1]


def test_tokens_that_do_not_fit_are_refused(config, rough):
    params, tokens = rough(config), torch.zeros(2, 3, dtype=torch.long)
    past = gpt.init_cache(config, params, batch_size=2, max_len=8)
    past = past._replace(length=torch.tensor([1, 6]))
    with pytest.raises(ValueError, match="9 tokens do not fit the cache of 8"):
        gpt.apply(config, params, tokens.new_zeros(2, 9), past)
    # A sequence that would grow beyond the cache is refused by the write; the cache is unchanged.
    before = past.k.clone()
    with pytest.raises(RuntimeError, match="out of bounds"):
        gpt.apply(config, params, tokens, past)
    assert torch.equal(past.k, before)


def test_an_in_place_cache_holds_what_a_pure_cache_does(config, rough):
    params, tokens = rough(config), torch.arange(6).view(2, 3)
    pure = gpt.init_cache(config, params, batch_size=3, max_len=8)
    in_place = cache.InPlaceKVCache(pure.k.clone(), pure.v.clone(), pure.length)
    part = cache.view(in_place, 2, 6)
    first_two = cache.KVCache(pure.k[:, :2], pure.v[:, :2], pure.length[:2])
    wanted, after = gpt.apply(config, params, tokens, first_two)
    got, advanced = gpt.apply(config, params, tokens, part)
    torch.testing.assert_close(got, wanted)
    assert isinstance(advanced, cache.InPlaceKVCache)
    assert advanced.k.data_ptr() == in_place.k.data_ptr()
    assert advanced.length.tolist() == [3, 3]
    torch.testing.assert_close(in_place.k[:, :2], after.k)
    torch.testing.assert_close(in_place.v[:, :2], after.v)
    assert not in_place.k[:, 2].any()
