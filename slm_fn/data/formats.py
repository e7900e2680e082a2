"""Files as blocks, lines, texts and parquet batches, decompressed on the way and never held whole.

pyarrow reads gzip, zstd and parquet: `datasets` brings it, and the standard library knows no zstd before Python 3.14.

Invariant: the blocks joined are the file's bytes and the pieces joined are its text, whatever the sizes; where a file
breaks, what came before is given first.
"""

from __future__ import annotations

import codecs
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import IO, Any

PIECE = 1 << 20
"""Characters of a text that are held at a time."""
BLOCK = 1 << 18
"""Bytes that are read at a time."""
LINE = 1 << 26
"""Bytes of the longest line that is read; a longer one is told and passed over."""
BATCH = 1 << 23
"""Bytes of parquet that are read at a time, by the average row of the row group; at most 4096 rows."""

KINDS = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".parquet": "parquet"}
CODECS = {".gz": "gzip", ".zst": "zstd"}
SUFFIXES = tuple(KINDS)

Fail = Callable[[str], None]
"""Takes one line about what cannot be read, and raises it or lets reading go on."""


class Broken(ValueError):
    """A file that cannot be read from some place on."""


def kind(file: str) -> tuple[str, str] | None:
    """What a file holds (text, jsonl or parquet) and how it is compressed, by its name; None for any other.

    Example:
        >>> kind("a/B.JSONL.gz"), kind("notes.md"), kind("a.tar.gz")
        (('jsonl', 'gzip'), ('text', ''), None)
    """
    name = file.lower()
    codec = next((suffix for suffix in CODECS if name.endswith(suffix)), "")
    name = name.removesuffix(codec)
    ending = next((suffix for suffix in KINDS if name.endswith(suffix)), None)
    return (KINDS[ending], CODECS.get(codec, "")) if ending else None


def shown(file: object) -> str:
    """A path fit for a message and a document's name: one line, and encodable whatever bytes it is made of."""
    text = str(file)
    return text if text.isprintable() else ascii(text)[1:-1]


def blocks(file: str, size: int = BLOCK) -> Iterator[bytes]:
    """A file's bytes, decompressed as its name says, at most `size` at a time.

    Raises:
        Broken: it cannot be opened, or the compressed stream breaks; after the last byte that could be read.
    """
    codec = (kind(file) or ("", ""))[1]
    done = 0
    try:
        with _opened(file, codec) as stream:
            while block := stream.read(size):
                yield block
                done += len(block)
        return
    except OSError as error:
        trouble = error
    if trouble.strerror:  # from the system; pyarrow's own have a text alone
        raise Broken(f"{shown(file)}: {trouble.strerror}; it is left out from byte {done} on")
    block = _rest(file, codec, done)
    if block:
        yield block
    raise Broken(
        f"{shown(file)}: the {codec} stream breaks after {done + len(block)} bytes ({trouble}); "
        "what comes before is kept; fetch the file again"
    )


def _opened(file: str, codec: str) -> Any:
    if not codec:
        return open(file, "rb", buffering=0)
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.OSFile(file), codec)


def _rest(file: str, codec: str, start: int) -> bytes:
    """What a broken stream still gives behind `start`: a read that fails gives nothing, so byte by byte."""
    found = bytearray()
    try:
        with _opened(file, codec) as stream:
            while start > 0 and (before := stream.read(min(start, BLOCK))):  # it may be shorter than it was
                start -= len(before)
            while byte := stream.read(1):
                found += byte
    except OSError:
        pass
    return bytes(found)


def text(file: str, fail: Fail, block_size: int = BLOCK) -> Iterator[str]:
    """A text file's characters, up to the first byte that is not UTF-8.

    A NUL is a character like any other. A file with a NUL and with bytes that are not UTF-8 in its first block is taken
    for binary under a wrong name and left out whole.
    """
    decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
    try:
        for block in blocks(file, block_size):
            start = done - len(decoder.getstate()[0])
            if found := decoder.decode(block):
                yield found
            done += len(block)
        start = done - len(decoder.getstate()[0])
        decoder.decode(b"", final=True)
    except Broken as error:
        fail(str(error))
    except UnicodeDecodeError as error:
        place, byte = start + error.start, error.object[error.start]
        if start == 0 and b"\0" in error.object:
            fail(f"{shown(file)}: not text but binary: a NUL, and byte {place} (0x{byte:02x}) is not UTF-8; left out")
            return
        if error.start:
            yield error.object[: error.start].decode("utf-8")
        fail(
            f"{shown(file)}: byte {place} (0x{byte:02x}) is not UTF-8; convert the file, say with iconv; "
            "it is left out from there on"
        )


_LINE_END = re.compile(r"(?s:.*)\S\n(?=\S)")
_WORD_END = re.compile(r"(?s:.*)(?:\S(?=[ \t\u3000])|[^\W_](?=[\n。，、！？；]))")


def pieces(texts: Iterable[str], limit: int = PIECE) -> Iterator[str]:
    """The characters of `texts` in pieces of at most `limit`, cut where no token crosses.

    That is just after a newline between two characters that are not white space, if the last sixteenth of the piece has
    one; else the last end of a word, before white space or a full-width stop; else, in a piece without either,
    anywhere. The split patterns gpt2, cl100k, llama3 and qwen2 give the same parts on both sides of the first two.
    (After one of several newlines they do not: gpt2 puts the last into a part of its own, but not at a text's end.)

    Example:
        >>> list(pieces(["one\\ntwo thr", "ee four"], limit=7))
        ['one\\ntwo', ' three', ' four']
    """
    held = ""
    for block in texts:
        held += block
        start = 0
        while len(held) - start > limit:
            end = start + limit + 1  # the character behind the piece decides too
            found = (
                _LINE_END.match(held, max(start, end - limit // 16), end)
                or _WORD_END.match(held, start, end)
                or _LINE_END.match(held, start, end)
            )
            end = found.end() if found else start + limit
            yield held[start:end]
            start = end
        held = held[start:]
    if held:
        yield held


def lines(file: str, fail: Fail, limit: int = LINE, block_size: int = BLOCK) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that hold anything, numbered from 1; only a line feed ends a line, as JSONL says."""
    number, held, size = 1, [b""], 0
    long = f"longer than {limit} bytes; left out; split it"
    try:
        for block in blocks(file, block_size):
            head, *rest = block.split(b"\n")
            size += len(head)
            if size <= limit:
                held.append(head)
            else:
                held.clear()
            if not rest:
                continue
            rest[:0], tail = [b"".join(held)], rest.pop()
            if size > limit:
                fail(f"{shown(file)}, line {number}: {long}")
            for line in rest:
                if len(line) > limit:
                    fail(f"{shown(file)}, line {number}: {long}")
                elif line and not line.isspace():
                    yield number, line
                number += 1
            held, size = [tail], len(tail)
    except Broken as error:
        fail(str(error))  # and its last line with it
        return
    last = b"".join(held)
    if size > limit:
        fail(f"{shown(file)}, line {number}: {long}")
    elif last and not last.isspace():
        yield number, last


def batches(file: str, column: str | None, fail: Fail) -> Iterator[tuple[int, list[Any]]]:
    """The rows of a parquet file as Python values (of one column, or whole ones as dicts), and the first's number.

    Rows are numbered from 1. A string that is not UTF-8 comes as the UnicodeDecodeError that it raises.
    """
    import pyarrow
    from pyarrow import parquet

    unreadable = (pyarrow.ArrowException, OSError, ValueError, MemoryError)
    with ExitStack() as stack:
        try:
            source = stack.enter_context(_seekable(file))
            table = parquet.ParquetFile(source, buffer_size=BLOCK, pre_buffer=False)
            names = table.schema_arrow.names
        except Broken as error:
            fail(str(error))
            return
        except unreadable as error:
            fail(f"{shown(file)}: not parquet, or cut off: {_first(error)}; left out; fetch the file again")
            return
        if column is not None and column not in names:
            fail(f"{shown(file)}: no column `{column}`; there are {', '.join(map(shown, names))}")
            return
        row = 1
        for group in range(table.num_row_groups):
            meta, done = table.metadata.row_group(group), 0
            size = max(1, min(4096, BATCH * meta.num_rows // max(1, meta.total_byte_size)))
            try:
                wanted = None if column is None else [column]
                for batch in table.iter_batches(size, row_groups=[group], columns=wanted):
                    yield row + done, _values(batch if column is None else batch.column(0))
                    done += batch.num_rows
            except unreadable as error:
                fail(f"{shown(file)}: rows {row + done} to {row + meta.num_rows - 1} cannot be read: {_first(error)}")
            row += meta.num_rows


def _seekable(file: str) -> IO[bytes]:
    """Parquet is read from its end: a compressed file is first decompressed beside the system's temporary files."""
    try:
        if not (kind(file) or ("", ""))[1]:
            return open(file, "rb")
    except OSError as error:
        raise Broken(f"{shown(file)}: {error.strerror}; left out") from None
    with ExitStack() as stack:
        whole = stack.enter_context(tempfile.TemporaryFile())
        for block in blocks(file):
            whole.write(block)
        whole.seek(0)
        stack.pop_all()
    return whole


def _values(column: Any) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError as error:
        if len(column) == 1:
            return [error]
    return [value for index in range(len(column)) for value in _values(column.slice(index, 1))]


def _first(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".: ")
