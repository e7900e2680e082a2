"""JSONL lines and parquet rows decoded to Python types, each with its number.

Invariant: a row of the wrong type is reported with its file and number, and the next ones follow.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from slm_fn.data.io import folders, formats, parquet, text_files
from slm_fn.data.io.formats import printable_path
from slm_fn.data.io.problems import OnProblem, ProblemReporter

T = TypeVar("T")
MAX_FIELDS_SHOWN = 8
"""Fields of a record listed in the message about a missing one."""

_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_LONE_SURROGATE = re.compile(rb"\\u[dD][89abAB]\w\w(?!\\u[dD][c-fC-F])")
"""JSON can spell half a surrogate pair, which no text can hold; msgspec refuses it, but reports it
as a truncated line."""


def read_rows(file: str, row_type: type[T], on_problem: OnProblem) -> Iterator[tuple[int, T]]:
    """Yield the lines of a JSONL file or the rows of a parquet file as (number, row)."""
    if formats.kind_of(file) == "jsonl":
        yield from _decode_lines(file, msgspec.json.Decoder(row_type).decode, on_problem)
    else:
        yield from _convert_rows(file, None, row_type, on_problem)


def read_texts(file: str, column: str, on_problem: OnProblem) -> Iterator[tuple[int, str]]:
    """Yield (number, text) for one field of each JSONL line, or one parquet column."""
    if formats.kind_of(file) == "jsonl":
        yield from _decode_lines(file, _field_decoder(column), on_problem)
    else:
        yield from _convert_rows(file, column, str, on_problem)


def read_dicts(
    path: Path | str, on_problem: OnProblem | None = None, *, skip: int = 0
) -> Iterator[dict[str, Any]]:
    """Iterate over the rows of the JSONL and parquet files at a path, as dicts.

    Args:
        on_problem: receives one line for each row or file that cannot be read.
        skip: the number of readable rows to pass over.

    Raises:
        FileNotFoundError: the path does not exist; raised by the call itself.
        ValueError: a file of another kind; or, without `on_problem`, a problem.
    """
    reporter = ProblemReporter(on_problem)
    files = folders.list_files(path, reporter.report)
    for file in files:
        _check_has_rows(file)
    return islice(_read_all_dicts(files, reporter), skip, None)


def read_structs(paths: Iterable[Path | str], row_type: type[T]) -> Iterator[tuple[str, T]]:
    """Yield every row of JSONL and parquet files as (location for messages, row).

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a row that is not a `row_type`, or no rows at all.
    """
    reporter = ProblemReporter(None)
    files: list[Path] = []
    for path in paths:
        files += folders.list_files(path)
    is_empty = True
    for file in files:
        _check_has_rows(file)
        for number, row in read_rows(str(file), row_type, reporter.report):
            is_empty = False
            yield f"{printable_path(file)}, line {number}", row
    if is_empty:
        if not files:
            raise ValueError("no data: no files were named")
        names = ", ".join(map(printable_path, files[:3]))
        raise ValueError(f"no data: {names} contains no lines")


def _read_all_dicts(files: list[Path], reporter: ProblemReporter) -> Iterator[dict[str, Any]]:
    for file in files:
        for _, row in read_rows(str(file), dict, reporter.report):
            yield row


def _check_has_rows(file: Path) -> None:
    if formats.kind_of(str(file)) == "text":
        raise ValueError(
            f"{file} is not JSONL or parquet; conversations, pairs and records are read from these"
        )


def _field_decoder(column: str) -> Callable[[bytes], str]:
    """Return a decoder from a JSON line to the text in one of its fields.

    Where the field is missing, the decoder's error lists the fields that there are.
    """
    row_type: Any = msgspec.defstruct("Row", [("text", str, msgspec.field(name=column))])
    decoder = msgspec.json.Decoder(row_type)

    def decode_field(line: bytes) -> str:
        try:
            return cast(str, decoder.decode(line).text)
        except msgspec.ValidationError:
            row = msgspec.json.decode(line)
            if not isinstance(row, dict) or column in row:
                raise
            fields = map(printable_path, islice(row, MAX_FIELDS_SHOWN))
            names = ", ".join(fields) or "none"
            raise msgspec.ValidationError(f"no field `{column}`; there are {names}") from None

    return decode_field


def _decode_lines(
    file: str, decode: Callable[[bytes], T], on_problem: OnProblem
) -> Iterator[tuple[int, T]]:
    for number, line in text_files.read_lines(file, on_problem):
        try:
            row = decode(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
        except _DECODE_ERRORS as error:
            on_problem(f"{printable_path(file)}, line {number}: {_explain(error, line)}")
        else:
            yield number, row


def _convert_rows(
    file: str, column: str | None, row_type: type[T], on_problem: OnProblem
) -> Iterator[tuple[int, T]]:
    for first_row, values in parquet.read_batches(file, column, on_problem):
        for number, value in enumerate(values, first_row):
            try:
                if isinstance(value, UnicodeDecodeError):
                    raise value
                row = msgspec.convert(value, row_type)
            except _DECODE_ERRORS as error:
                on_problem(f"{printable_path(file)}, row {number}: {_explain(error, b'')}")
            else:
                yield number, row


def _explain(error: Exception, line: bytes) -> str:
    if isinstance(error, UnicodeDecodeError):
        wrong = error.object[error.start : error.start + 1]
        return f"{wrong!r} is not UTF-8"  # the error's position is that in one string, not the line
    lone_surrogate = _LONE_SURROGATE.search(line)
    if lone_surrogate:
        return f"half a surrogate pair, {lone_surrogate[0].decode()}"
    if isinstance(error, RecursionError):
        return "nested too deep"
    return str(error)
