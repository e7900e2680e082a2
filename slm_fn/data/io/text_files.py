"""Text files as characters and lines, and long texts as chunks, without holding a file in memory.

Invariant: the chunks joined are the text, whatever the size of the blocks that were read; where a
file breaks, the text before the break is yielded first.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from itertools import chain

from slm_fn.data.io import compression
from slm_fn.data.io.compression import BLOCK_BYTES, BrokenFileError
from slm_fn.data.io.formats import printable_path
from slm_fn.data.io.problems import OnProblem

CHUNK_CHARS = 1 << 20
"""The most characters of a text that are held at a time."""
MAX_LINE_BYTES = 1 << 26
"""Bytes of the longest line that is read; a longer one is reported and skipped."""

_LINE_END = re.compile(r"(?s:.*)\S\n(?=\S)")
_WORD_END = re.compile(r"(?s:.*)(?:\S(?=[ \t\u3000])|[^\W_](?=[\n。，、！？；]))")


def read_text(file: str, on_problem: OnProblem, block_size: int = BLOCK_BYTES) -> Iterator[str]:
    """Yield a text file's characters, up to the first byte that is not UTF-8.

    A NUL is a character like any other. A file whose first block has a NUL and bytes that are not
    UTF-8 is taken to be binary under a wrong name and left out completely.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    num_read = 0
    try:
        for block in compression.read_blocks(file, block_size):
            start = num_read - _num_undecoded(decoder)
            text = decoder.decode(block)
            if text:
                yield text
            num_read += len(block)
        start = num_read - _num_undecoded(decoder)
        decoder.decode(b"", final=True)
    except BrokenFileError as error:
        on_problem(str(error))
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        location = f"byte {start + error.start} (0x{byte:02x}) is not UTF-8"
        if start == 0 and b"\0" in error.object:
            on_problem(
                f"{printable_path(file)}: binary, not text: it has a NUL, and {location}; left out"
            )
            return
        if error.start:
            yield error.object[: error.start].decode("utf-8")
        on_problem(
            f"{printable_path(file)}: {location}; convert the file, for example with iconv; "
            "it is left out from there on"
        )


def split_chunks(texts: Iterable[str], limit: int = CHUNK_CHARS) -> Iterator[str]:
    """Split a text into chunks of at most `limit` characters, at boundaries that no token crosses.

    A chunk ends just after a newline between two characters that are not white space, if its last
    sixteenth has one; else at its last end of a word, before white space or a full-width stop;
    else, in a chunk without either, anywhere. The split patterns gpt2, cl100k, llama3 and qwen2
    give the same tokens on both sides of the first two kinds of boundary. (After one of several
    newlines they do not: gpt2 separates the last one, but not at the end of a text.)

    Args:
        texts: the text, in consecutive strings of any length.
        limit: the most characters in a chunk.

    Example:
        >>> list(split_chunks(["one\\ntwo thr", "ee four"], limit=7))
        ['one\\ntwo', ' three', ' four']
    """
    buffer = ""
    for text in texts:
        buffer += text
        start = 0
        while len(buffer) - start > limit:
            end = _chunk_end(buffer, start, limit)
            yield buffer[start:end]
            start = end
        buffer = buffer[start:]
    if buffer:
        yield buffer


def read_lines(
    file: str, on_problem: OnProblem, limit: int = MAX_LINE_BYTES, block_size: int = BLOCK_BYTES
) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file that are not blank, numbered from 1.

    Only a line feed ends a line, as the JSONL format says.

    Args:
        limit: bytes of the longest line that is read; a longer one is reported and skipped.
    """
    number = 1
    pending = [b""]
    pending_size = 0

    def report_too_long() -> None:
        path = printable_path(file)
        on_problem(f"{path}, line {number}: longer than {limit} bytes; left out; split the line")

    last_line_end = [b"\n"]  # not reached where the file breaks: its last line is incomplete
    try:
        for block in chain(compression.read_blocks(file, block_size), last_line_end):
            head, *others = block.split(b"\n")
            pending_size += len(head)
            if pending_size <= limit:
                pending.append(head)
            else:
                pending.clear()
            if not others:
                continue
            tail = others.pop()
            if pending_size > limit:
                report_too_long()
            for line in [b"".join(pending), *others]:
                if len(line) > limit:
                    report_too_long()
                elif line and not line.isspace():
                    yield number, line
                number += 1
            pending = [tail]
            pending_size = len(tail)
    except BrokenFileError as error:
        on_problem(str(error))


def _num_undecoded(decoder: codecs.IncrementalDecoder) -> int:
    """Return the number of bytes that wait in the decoder for the rest of their character."""
    return len(decoder.getstate()[0])


def _chunk_end(buffer: str, start: int, limit: int) -> int:
    end = start + limit + 1  # the character after the chunk decides as well
    boundary = (
        _LINE_END.match(buffer, max(start, end - limit // 16), end)
        or _WORD_END.match(buffer, start, end)
        or _LINE_END.match(buffer, start, end)
    )
    return start + limit if boundary is None else boundary.end()
