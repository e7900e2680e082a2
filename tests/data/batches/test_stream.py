"""The stream: any batch at any time, every window once per epoch, ranks share out one batch."""

import sys
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed import take

from slm_fn.core import random
from slm_fn.core.types import check_lm_batch
from slm_fn.data.batches import stream
from slm_fn.data.io.documents import Document
from slm_fn.data.pack import dataset as packs

MakePack = Callable[..., packs.Pack]
TOTAL, SEQ_LEN = 1010, 16
WINDOWS = (TOTAL - 1) // SEQ_LEN


@pytest.fixture
def numbered(make_pack: MakePack) -> packs.Pack:
    """A pack whose ids are their own places, 0 to 1009, so that a window says where it was cut."""
    return make_pack(
        documents=[Document("one", "x")],
        encode_flat=lambda texts: (np.arange(1, TOTAL, dtype=np.uint32), np.array([0, TOTAL - 1])),
        vocab_size=TOTAL,
        val_fraction=0.0,
        seq_len=SEQ_LEN,
    )


def epoch(pack: packs.Pack, seed: int, number: int) -> torch.Tensor:
    """The windows of one epoch, in its order."""
    first = number * WINDOWS
    return torch.cat(
        [stream.lm_batch(pack, "train", seed, first + k, 1).tokens for k in range(WINDOWS)]
    )


def test_a_batch_is_the_same_whenever_it_is_asked_for(make_pack: MakePack) -> None:
    pack = make_pack()
    straight = [stream.lm_batch(pack, "train", 5, k, 4) for k in range(60)]
    reopened = packs.open_pack(pack.path)
    for k in (59, 7, 0, 31):
        again = stream.lm_batch(reopened, "train", 5, k, 4)
        assert torch.equal(again.tokens, straight[k].tokens)
        check_lm_batch(again)
        assert bool((again.mask == 1).all())
    assert not torch.equal(stream.lm_batch(pack, "train", 6, 0, 4).tokens, straight[0].tokens)


@pytest.mark.parametrize("number", range(4))
def test_an_epoch_predicts_every_token_once_up_to_the_tail(
    numbered: packs.Pack, number: int
) -> None:
    assert stream.num_windows(numbered, "train") == WINDOWS == 63
    windows = epoch(numbered, 0, number)
    assert torch.equal(windows[:, 1:], (windows[:, :-1] + 1) % TOTAL), (
        "a window is not a run of the text"
    )
    targets = Counter(windows[:, 1:].flatten().tolist())
    assert set(targets.values()) == {1}
    assert TOTAL - len(targets) == 2, (
        "at most seq_len are left out: here 1009 - 63 * 16 and the very first"
    )
    if number == 0:
        assert sorted(windows[:, 0].tolist()) == list(range(0, WINDOWS * SEQ_LEN, SEQ_LEN))


def test_epochs_differ_in_order_and_in_where_they_cut(numbered: packs.Pack) -> None:
    starts = [epoch(numbered, 0, number)[:, 0].tolist() for number in range(4)]
    assert starts[0] != sorted(starts[0]), "not shuffled"
    orders = [[begin // SEQ_LEN for begin in s] for s in starts]
    assert len(set(map(tuple, orders))) == 4
    left_out = [
        tuple(set(range(TOTAL)) - {(b + i) % TOTAL for b in s for i in range(1, SEQ_LEN + 1)})
        for s in starts
    ]
    assert len(set(left_out)) == 4, "the tail does not move"
    assert epoch(numbered, 1, 0)[:, 0].tolist() != starts[0]


def test_any_position_costs_the_same(numbered: packs.Pack) -> None:
    assert stream.lm_batch(numbered, "train", 0, 10**12, 4).tokens.shape == (4, SEQ_LEN + 1)


def test_batches_may_straddle_epochs(numbered: packs.Pack) -> None:
    rows = torch.cat([stream.lm_batch(numbered, "train", 3, k, 10).tokens for k in range(13)])
    singles = torch.cat([epoch(numbered, 3, 0), epoch(numbered, 3, 1), epoch(numbered, 3, 2)])
    assert torch.equal(rows, singles[:130])


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_together_are_one(numbered: packs.Pack, world_size: int) -> None:
    for k in (0, 20):
        whole = stream.lm_batch(numbered, "train", 1, k, 6)
        parts = [
            stream.lm_batch(numbered, "train", 1, k, 6, rank, world_size)
            for rank in range(world_size)
        ]
        assert torch.equal(torch.cat([p.tokens for p in parts]), whole.tokens)
        assert torch.equal(torch.cat([p.mask for p in parts]), whole.mask)
        assert len({row[0].item() for p in parts for row in p.tokens}) == 6


def in_memory(shards: list[np.ndarray], seq_len: int) -> packs.Pack:
    """A pack that never was on the disk."""
    total = sum(map(len, shards))
    info = packs.PackInfo(
        seq_len=seq_len,
        dtype="uint16",
        vocab_size=1 << 16,
        eos=0,
        fingerprint="",
        splits={"train": packs.Split(tokens=total)},
    )
    return packs.Pack(
        Path("memory"),
        info,
        {"train": tuple(shards)},
        {"train": np.cumsum([*map(len, shards)])},
        "",
    )


@st.composite
def cut_rows(draw: st.DrawFn) -> tuple[list[int], list[np.ndarray]]:
    """A row of different ids, and the shards it is cut into."""
    sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=6))
    row = np.arange(100, 100 + sum(sizes), dtype="<u2")
    return row.tolist(), np.split(row, np.cumsum(sizes)[:-1])


@given(cut_rows(), st.lists(st.integers(0, 1000), max_size=8), st.integers(1, 70))
def test_rows_are_what_slow_python_takes(cut, starts, length):
    row, shards = cut
    pack = in_memory(shards, 1)
    found = packs.read_rows(pack, "train", np.array(starts, dtype=np.int64), length)
    assert found.dtype == np.int64
    assert found.tolist() == [
        [row[(start + i) % len(row)] for i in range(length)] for start in starts
    ]
    assert all(
        take(pack, "train", start, length).tolist() == row
        for start, row in zip(starts, found.tolist(), strict=True)
    )


@given(
    cut_rows(), st.integers(1, 8), st.integers(0, 2**32), st.integers(0, 10**13), st.integers(1, 40)
)
def test_batches_are_what_slow_python_makes(cut, seq_len, seed, position, batch_size):
    row, shards = cut
    pack = in_memory(shards, seq_len)
    size = (len(row) - 1) // seq_len
    if size == 0:
        return
    expected = []
    for number in range(position * batch_size, (position + 1) * batch_size):
        epoch, index = divmod(number, size)
        key = random.fold_in(seed, epoch)
        begin = random.permute_index(key, index, size) * seq_len
        begin += random.fold_in(key, "offset") % len(row) if epoch else 0
        expected.append([row[(begin + i) % len(row)] for i in range(seq_len + 1)])
    assert stream.lm_batch(pack, "train", seed, position, batch_size).tokens.tolist() == expected


def work(call: Callable[[], object]) -> tuple[int, int]:
    """How many functions a call calls, and how many bytes it holds at most."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    tracemalloc.start()
    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return calls, peak


def test_any_of_a_hundred_billion_tokens_takes_as_much_work_as_the_first() -> None:
    each = 10**8
    pack = in_memory([np.broadcast_to(np.uint16(i), (each,)) for i in range(1000)], 1024)
    (epoch, items), *_ = stream.items_by_epoch(
        7, 5 * stream.num_windows(pack, "train"), 64, stream.num_windows(pack, "train")
    )
    begin = random.fold_in(random.fold_in(7, epoch), "offset") % 10**11
    found = stream.windows(pack, "train", 7, 5 * stream.num_windows(pack, "train"), 64)
    assert epoch == 5
    assert found[:, 0].tolist() == [
        (begin + item * 1024) % 10**11 // each for item in items.tolist()
    ]
    assert len(set(found[:, 0].tolist())) > 50, "not spread over the shards"

    def most_work(positions: list[int]) -> tuple[int, int]:
        found = [
            work(partial(stream.lm_batch, pack, "train", 1, position, 8)) for position in positions
        ]
        return max(calls for calls, _ in found), max(peak for _, peak in found)

    near = most_work(list(range(20)))
    far = most_work([random.fold_in(0, i) % 10**15 for i in range(20)])
    batch_bytes = 8 * (1024 + 1) * 8
    assert far[0] <= 2 * near[0], "the way there is walked"
    assert max(near[1], far[1]) <= 16 * batch_bytes, "more than the batch is held"


def test_bad_requests_are_said_plainly(make_pack: MakePack) -> None:
    pack = make_pack(val_names=("doc-00",))
    with pytest.raises(
        ValueError, match="rank 1 of 3 from a batch of 2: there must be at least one for each"
    ):
        stream.lm_batch(pack, "train", 0, 0, 2, 1, 3)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        stream.lm_batch(pack, "train", 0, 0, 4, 2, 2)
    short = make_pack("short", val_fraction=0.0)
    assert stream.num_windows(short, "val") == 0
    with pytest.raises(
        ValueError, match=r"val split of .* has 0 tokens, less than one window of 17"
    ):
        stream.lm_batch(short, "val", 0, 0, 1)


def test_prefetch_keeps_the_order_and_stays_ahead() -> None:
    asked: list[int] = []

    def batch_at(position: int) -> int:
        asked.append(position)
        return position

    ahead = stream.prefetch(batch_at, 3, 50, depth=2)
    assert next(ahead) == 3
    assert list(ahead) == list(range(4, 50)) == asked[1:]
    assert list(stream.prefetch(batch_at, 4, 4)) == []


def test_prefetch_passes_an_error_on_at_its_own_place() -> None:
    def batch_at(position: int) -> int:
        if position == 2:
            raise ValueError("no batch 2")
        return position

    ahead = stream.prefetch(batch_at, 0, 10)
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(ValueError, match="no batch 2"):
        next(ahead)
    assert not _prefetching()


def test_closing_prefetch_ends_its_thread() -> None:
    made: list[int] = []
    ahead = stream.prefetch(lambda position: made.append(position) or position, 0, 10**9)
    assert next(ahead) == 0
    assert _prefetching()
    ahead.close()
    assert not _prefetching()
    assert len(made) <= 4


def _prefetching() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]
