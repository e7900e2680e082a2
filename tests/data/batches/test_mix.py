"""data/batches/mix.py.

Every prefix of rows has the shares, and a pack is read as if it were alone.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm_fn.core import random
from slm_fn.data.batches import mix, stream
from slm_fn.data.io.documents import Document
from slm_fn.data.pack import dataset as packs

MakePack = Callable[..., packs.Pack]


def numbered(
    make_pack: MakePack, name: str, first: int, total: int, **changes: object
) -> packs.Pack:
    """A pack whose ids count up from `first`, so that a row says which pack it comes from."""
    row = np.arange(first + 1, first + total, dtype=np.uint32)
    told = {"vocab_size": 40_000, "eos": first, "val_fraction": 0.0} | changes
    return make_pack(
        name,
        documents=[Document("d", "x")],
        encode_flat=lambda t: (row, np.array([0, len(row)])),
        **told,
    )


@pytest.fixture
def three(make_pack: MakePack) -> list[packs.Pack]:
    return [
        numbered(make_pack, f"p{i}", 10_000 * i, total) for i, total in enumerate((500, 900, 300))
    ]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_no_pack_is_ever_a_row_away_from_its_share(counts):
    cycle = mix.apportion(counts)
    assert np.bincount(cycle, minlength=len(counts)).tolist() == counts
    for rows in range(len(cycle) + 1):
        for number, count in enumerate(counts):
            assert abs((cycle[:rows] == number).sum() - rows * count / sum(counts)) < 1


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=6))
def test_whole_weights_are_near_the_weights(weights):
    counts = mix.integer_weights(weights)
    for weight, count in zip(weights, counts, strict=True):
        assert count >= 1
        assert abs(count / sum(counts) - weight / sum(weights)) < (len(weights) + 1) / mix.MAX_CYCLE


def test_a_pack_alone_gives_its_own_batches(three):
    alone = mix.mix(three[:1], [7])
    assert alone.digest == three[0].digest
    for position in (0, 5, 10**9):
        expected = stream.lm_batch(three[0], "train", 3, position, 4)
        assert torch.equal(mix.lm_batch(alone, "train", 3, position, 4).tokens, expected.tokens)


def test_rows_are_shared_out_exactly_and_each_pack_keeps_its_order(three):
    mixture = mix.mix(three, [0.5, 0.3, 0.2])
    assert mixture.counts == (5, 3, 2)
    assert mixture.shares == (0.5, 0.3, 0.2)
    rows = torch.cat([mix.lm_batch(mixture, "train", 4, k, 7).tokens for k in range(100)])
    belongs = rows[:, 0] // 10_000
    assert belongs.bincount().tolist() == [350, 210, 140]
    for number, pack in enumerate(three):
        seed = random.fold_in(4, pack.digest)
        own = stream.windows(pack, "train", seed, 0, int((belongs == number).sum()))
        assert torch.equal(rows[belongs == number], torch.from_numpy(own))


def test_any_position_is_there_at_once(three):
    mixture = mix.mix(three, [3, 2, 1])
    straight = [mix.lm_batch(mixture, "train", 1, k, 5).tokens for k in range(40)]
    again = mix.mix([packs.open_pack(pack.path) for pack in three], [3, 2, 1])
    for k in (39, 0, 17):
        assert torch.equal(mix.lm_batch(again, "train", 1, k, 5).tokens, straight[k])
    assert mix.lm_batch(mixture, "train", 1, 10**15, 5).tokens.shape == (5, 17)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_together_are_one(three, world_size):
    mixture = mix.mix(three)
    for k in (0, 30):
        parts = [
            mix.lm_batch(mixture, "train", 1, k, 8, rank, world_size).tokens
            for rank in range(world_size)
        ]
        assert torch.equal(torch.cat(parts), mix.lm_batch(mixture, "train", 1, k, 8).tokens)


def test_without_weights_packs_count_by_their_tokens(three):
    shares = mix.mix(three).shares
    assert all(
        abs(share - tokens / 1700) < 2 / mix.MAX_CYCLE
        for share, tokens in zip(shares, (500, 900, 300), strict=True)
    )


def test_mixtures_are_told_apart(three):
    digests = [
        mix.mix(*given).digest
        for given in [(three, [1, 1, 1]), (three, [2, 1, 1]), (three[::-1], [1, 1, 1])]
    ]
    assert len(set(digests)) == 3
    assert all(a != b for a, b in pairwise(digests))
    assert mix.mix(three, [2, 2, 2]).digest == digests[0]


def test_what_cannot_be_mixed_is_said(make_pack, three):
    other = numbered(make_pack, "other", 0, 400, fingerprint="another")
    longer = numbered(make_pack, "longer", 0, 400, seq_len=32)
    for given_packs, weights, message in (
        ([], None, "no packs"),
        ([three[0], other], None, "different tokenizers"),
        ([three[0], longer], None, "windows of 32 tokens"),
        ([three[0], three[1], three[0]], None, "is named twice"),
        (three, [1, 2], "one for each of 3 packs"),
        (three, [1, 2, 0], "positive numbers"),
        (three, [1, 2, float("nan")], "positive numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            mix.mix(given_packs, weights)
    with pytest.raises(ValueError, match="less than one window"):
        mix.lm_batch(mix.mix(three), "val", 0, 0, 8)
