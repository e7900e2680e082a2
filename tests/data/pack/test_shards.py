"""data/pack/shards.py.

A writer resumes from any state; the journal clears what it does not name.
"""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_fn.core import files
from slm_fn.data.pack import shards
from slm_fn.data.pack.shards import Journal, ShardWriter, SplitState


def ids(num: int) -> np.ndarray:
    return np.arange(num, dtype="<u2")


def contents(root: Path) -> dict[str, bytes]:
    return {
        file.relative_to(root).as_posix(): file.read_bytes()
        for file in root.rglob("*")
        if file.is_file()
    }


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 30), st.integers(0, 100), st.integers(0, 80))
def test_a_writer_goes_on_from_its_state(tmp_path_factory, shard_size, first, lost):
    row = ids(100)
    whole, cut = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("cut")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda file: None)
        straight = ShardWriter(whole, "train", "<u2", shard_size, SplitState())
        straight.append(row, 3, 200)
        straight.close()
        writer = ShardWriter(cut, "train", "<u2", shard_size, SplitState())
        writer.append(row[:first], 1, 80)
        state = writer.state()
        assert writer.tokens == state.tokens == first
        # Another text, appended after the journal was written, and lost to a kill.
        writer.append(row[:lost] + 1, 9, 9)
        writer.abandon()
        shards.save(cut, Journal(splits={"train": state, "val": SplitState()}))
        (cut / "new").mkdir()
        (cut / "train").rename(cut / "new" / "train") if (cut / "train").exists() else None
        journal = shards.load(cut, cut / "new", "<u2")
        again = ShardWriter(cut / "new", "train", "<u2", shard_size, journal.splits["train"])
        again.append(row[first:], 2, 120)
        again.close()
        assert again.state() == straight.state()
        assert contents(cut / "new") == contents(whole)
    assert all(files.checksum(whole / shard.file) == shard.sha256 for shard in straight.shards)


def test_an_empty_split_has_no_files(tmp_path):
    writer = ShardWriter(tmp_path, "val", "<u2", 10, SplitState())
    writer.append(ids(0), 0, 0)
    writer.close()
    assert writer.state() == SplitState()
    assert contents(tmp_path) == {}


def test_without_a_journal_everything_goes(tmp_path):
    (tmp_path / "new" / "train").mkdir(parents=True)
    (tmp_path / "new" / "train" / "shard_00000.bin").write_bytes(b"xx")
    assert shards.load(tmp_path, tmp_path / "new", "<u2") == Journal()
    assert contents(tmp_path / "new") == {}


@pytest.mark.parametrize("harm", ["short", "gone", "list"])
def test_a_journal_whose_files_are_not_there_is_dropped(tmp_path, harm):
    (tmp_path / "new").mkdir()
    writer = ShardWriter(tmp_path / "new", "train", "<u2", 10, SplitState())
    writer.append(ids(25), 1, 1)
    shards.save(
        tmp_path, Journal(num_chunks=1, splits={"train": writer.state(), "val": SplitState()})
    )
    writer.abandon()
    assert shards.load(tmp_path, tmp_path / "new", "<u2").num_chunks == 1
    file = tmp_path / "new" / "train" / "shard_00002.bin"
    if harm == "short":
        file.write_bytes(file.read_bytes()[:-2])
    elif harm == "gone":
        file.unlink()
    else:
        (tmp_path / shards.JOURNAL).write_text("[]")
    assert shards.load(tmp_path, tmp_path / "new", "<u2") == Journal()
