"""JSONL lines and parquet rows as typed records, each with its number.

Invariant: a record that is not of its type is told with file and number, and the ones after it still come.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import msgspec

from slm_fn.data import formats
from slm_fn.data.formats import Fail, shown

T = TypeVar("T")


def records(file: str, kind: type[T], fail: Fail, column: str | None = None) -> Iterator[tuple[int, T]]:
    """The lines of JSONL or the rows of parquet (of one column, if only that is wanted), each as `kind`."""
    if (formats.kind(file) or ("", ""))[0] == "jsonl":
        decode = msgspec.json.Decoder(kind).decode
        for number, line in formats.lines(file, fail):
            try:
                row = decode(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
                if b"\\u" in line:  # JSON can spell half a surrogate pair, which is no text that anything can encode
                    msgspec.json.encode(row)
            except _UNREADABLE as error:
                fail(f"{shown(file)}, line {number}: {_why(error)}")
            else:
                yield number, row
        return
    for first, values in formats.batches(file, column, fail):
        for number, value in enumerate(values, first):
            try:
                if isinstance(value, UnicodeDecodeError):
                    raise value
                row = msgspec.convert(value if column is None else {column: value}, kind)
            except _UNREADABLE as error:
                fail(f"{shown(file)}, row {number}: {_why(error)}")
            else:
                yield number, row


_UNREADABLE = (msgspec.MsgspecError, UnicodeError, RecursionError)


def _why(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} of the line is not UTF-8"
    if isinstance(error, UnicodeEncodeError):
        return f"half a surrogate pair at character {error.start}"
    return "nested too deep" if isinstance(error, RecursionError) else str(error)
