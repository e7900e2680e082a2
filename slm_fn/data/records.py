"""JSONL lines and parquet rows as typed records, each with its number.

Invariant: a record that is not of its type is told with file and number, and the ones after it still come.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, TypeVar, cast

import msgspec

from slm_fn.data import formats
from slm_fn.data.formats import Fail, shown

T = TypeVar("T")
FIELDS = 8
"""So many of a record's fields are named where the one asked for is missing."""


def records(file: str, kind: type[T], fail: Fail) -> Iterator[tuple[int, T]]:
    """The lines of JSONL or the rows of parquet, each as `kind`."""
    if _is_jsonl(file):
        yield from _lines(file, msgspec.json.Decoder(kind).decode, fail)
    else:
        yield from _rows(file, None, kind, fail)


def texts(file: str, column: str, fail: Fail) -> Iterator[tuple[int, str]]:
    """The text in one field of each line of JSONL, or in one column of parquet."""
    if _is_jsonl(file):
        yield from _lines(file, _field(column), fail)
    else:
        yield from _rows(file, column, str, fail)


def _field(column: str) -> Callable[[bytes], str]:
    """From a line to the text in one of its fields; where there is none, what there is instead is said."""
    kind: Any = msgspec.defstruct("Row", [("text", str, msgspec.field(name=column))])
    decoder = msgspec.json.Decoder(kind)

    def text(line: bytes) -> str:
        try:
            return cast(str, decoder.decode(line).text)
        except msgspec.ValidationError:
            found = msgspec.json.decode(line)
            if not isinstance(found, dict) or column in found:
                raise
            names = ", ".join(map(shown, islice(found, FIELDS))) or "none"
            raise msgspec.ValidationError(f"no field `{column}`; there are {names}") from None

    return text


def _is_jsonl(file: str) -> bool:
    return (formats.kind(file) or ("", ""))[0] == "jsonl"


def _lines(file: str, decode: Callable[[bytes], T], fail: Fail) -> Iterator[tuple[int, T]]:
    for number, line in formats.lines(file, fail):
        try:
            row = decode(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
        except _UNREADABLE as error:
            fail(f"{shown(file)}, line {number}: {_why(error, line)}")
        else:
            yield number, row


def _rows(file: str, column: str | None, kind: type[T], fail: Fail) -> Iterator[tuple[int, T]]:
    for first, values in formats.batches(file, column, fail):
        for number, value in enumerate(values, first):
            try:
                if isinstance(value, UnicodeDecodeError):
                    raise value
                row = msgspec.convert(value, kind)
            except _UNREADABLE as error:
                fail(f"{shown(file)}, row {number}: {_why(error, b'')}")
            else:
                yield number, row


_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_HALF = re.compile(rb"\\u[dD][89abAB]\w\w(?!\\u[dD][c-fC-F])")
"""JSON can spell what is no text that anything can encode; msgspec refuses it, but takes it for a line cut off."""


def _why(error: Exception, line: bytes) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"{error.object[error.start : error.start + 1]!r} is not UTF-8"  # the place is the string's alone
    half = _HALF.search(line)
    if half:
        return f"half a surrogate pair, {half[0].decode()}"
    return "nested too deep" if isinstance(error, RecursionError) else str(error)
