"""Parquet in batches: numbered rows, corrupt row groups, compressed files, missing columns."""

import random
from pathlib import Path

import pyarrow
import pytest
from compressed_files import compress
from pyarrow import parquet as arrow_parquet

from slm_fn.data.io import parquet


def test_parquet_by_row_groups_where_one_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    problems: list[str] = []
    texts = [f"row {i} {random.Random(i).getrandbits(4000):x}" for i in range(300)]
    arrow_parquet.write_table(
        pyarrow.table({"other": range(300), "text": texts}),
        path,
        row_group_size=100,
        use_dictionary=False,
    )
    assert [
        v for _, values in parquet.read_batches(str(path), "text", problems.append) for v in values
    ] == texts
    rows = [
        row
        for _, values in parquet.read_batches(str(path), None, problems.append)
        for row in values
    ]
    assert rows[299] == {"other": 299, "text": texts[299]}
    assert problems == []
    data = bytearray(path.read_bytes())
    column = arrow_parquet.ParquetFile(path).metadata.row_group(1).column(1)
    data[column.data_page_offset : column.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    found = [
        v for _, values in parquet.read_batches(str(path), "text", problems.append) for v in values
    ]
    assert found == texts[:100] + texts[200:]
    assert len(problems) == 1
    assert problems[0].startswith(f"{path}: rows 101 to 200 cannot be read: ")
    path.write_bytes(data[:-100])
    assert list(parquet.read_batches(str(path), "text", problems.append)) == []
    assert "not parquet, or truncated" in problems[1]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_parquet_and_a_column_that_is_not_there(tmp_path: Path, suffix: str) -> None:
    plain = tmp_path / "a.parquet"
    path = tmp_path / f"b.parquet{suffix}"
    problems: list[str] = []
    arrow_parquet.write_table(pyarrow.table({"text": ["a", "b"]}), plain)
    path.write_bytes(compress(plain.read_bytes(), suffix))
    assert list(parquet.read_batches(str(path), "text", problems.append)) == [(1, ["a", "b"])]
    assert list(parquet.read_batches(str(path), "body", problems.append)) == []
    assert problems == [f"{path}: no column `body`; there are text"]
    path.write_bytes(path.read_bytes()[:-20])
    assert list(parquet.read_batches(str(path), "text", problems.append)) == []
    assert "stream breaks" in problems[1]
