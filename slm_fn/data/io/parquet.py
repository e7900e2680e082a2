"""Parquet files as batches of rows, compressed files included.

Invariant: the numbers of rows are those in the file, also after rows that cannot be read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any

from slm_fn.data.io import compression, formats
from slm_fn.data.io.compression import BLOCK_BYTES, BrokenFileError
from slm_fn.data.io.formats import printable_path
from slm_fn.data.io.problems import OnProblem

BATCH_BYTES = 1 << 23
"""Bytes of rows read at a time, estimated from the average row of the row group."""
MAX_BATCH_ROWS = 4096

Batch = tuple[int, list[Any]]
"""(number of the first row, values of the rows)."""


def read_batches(file: str, column: str | None, on_problem: OnProblem) -> Iterator[Batch]:
    """Yield the rows of a parquet file as Python values, with the number of each batch's first row.

    Rows are numbered from 1. A string that is not UTF-8 comes as the UnicodeDecodeError it raises.

    Args:
        column: the column to read; None reads all of them and yields dicts.
    """
    with ExitStack() as stack:
        table = _open_table(file, stack, on_problem)
        if table is None:
            return
        names = table.schema_arrow.names
        if column is not None and column not in names:
            available = ", ".join(map(printable_path, names))
            on_problem(f"{printable_path(file)}: no column `{column}`; there are {available}")
            return
        first_row = 1
        for group in range(table.num_row_groups):
            yield from _read_row_group(file, table, group, column, first_row, on_problem)
            first_row += table.metadata.row_group(group).num_rows


def _read_errors() -> tuple[type[Exception], ...]:
    import pyarrow

    return (pyarrow.ArrowException, OSError, ValueError, MemoryError)


def _open_table(file: str, stack: ExitStack, on_problem: OnProblem) -> Any:
    """Open a parquet file until `stack` closes; None, reported, where it cannot be read."""
    from pyarrow import parquet

    try:
        source = stack.enter_context(_open_seekable(file))
        table = parquet.ParquetFile(source, buffer_size=BLOCK_BYTES, pre_buffer=False)
        _ = table.schema_arrow  # decoded here, where a corrupt schema is reported
    except BrokenFileError as error:
        on_problem(str(error))
        return None
    except _read_errors() as error:
        on_problem(
            f"{printable_path(file)}: not parquet, or truncated: {_first_line(error)}; left out; "
            "download the file again"
        )
        return None
    return table


def _read_row_group(
    file: str,
    table: Any,
    group: int,
    column: str | None,
    first_row: int,
    on_problem: OnProblem,
) -> Iterator[Batch]:
    metadata = table.metadata.row_group(group)
    rows_in_batch = BATCH_BYTES * metadata.num_rows // max(1, metadata.total_byte_size)
    batch_size = max(1, min(MAX_BATCH_ROWS, rows_in_batch))
    columns = None if column is None else [column]
    next_row = first_row
    try:
        for batch in table.iter_batches(batch_size, row_groups=[group], columns=columns):
            yield next_row, _to_values(batch if column is None else batch.column(0))
            next_row += batch.num_rows
    except _read_errors() as error:
        last_row = first_row + metadata.num_rows - 1
        on_problem(
            f"{printable_path(file)}: rows {next_row} to {last_row} cannot be read: "
            f"{_first_line(error)}"
        )


def _open_seekable(file: str) -> IO[bytes]:
    """Open a file for random access: a compressed one is first decompressed to a temporary file.

    Parquet is read from its end.
    """
    if not formats.codec_of(file):
        try:
            return open(file, "rb")
        except OSError as error:
            raise BrokenFileError(f"{printable_path(file)}: {error.strerror}; left out") from None
    with ExitStack() as stack:
        decompressed = stack.enter_context(tempfile.TemporaryFile())
        for block in compression.read_blocks(file):
            decompressed.write(block)
        decompressed.seek(0)
        stack.pop_all()
    return decompressed


def _to_values(column: Any) -> list[Any]:
    """Return the values of a column or batch, with an error in place of each string not UTF-8."""
    values: list[Any] = []
    try:
        values = column.to_pylist()
    except UnicodeDecodeError as error:
        if len(column) == 1:
            return [error]
    else:
        return values
    for index in range(len(column)):
        values += _to_values(column.slice(index, 1))
    return values


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].rstrip(".: ")
