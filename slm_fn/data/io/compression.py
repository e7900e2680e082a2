"""Files as blocks of bytes, decompressed while they are read.

pyarrow decompresses gzip and zstd: `datasets` requires it, and the standard library has no zstd
before Python 3.14.

Invariant: the blocks joined are the file's bytes whatever their size; a file that breaks yields
every byte before the break.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from slm_fn.data.io import formats

BLOCK_BYTES = 1 << 18
"""Bytes read at a time."""


class BrokenFileError(ValueError):
    """Raised where a file cannot be read any further."""


def read_blocks(file: str, size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Yield a file's bytes, decompressed as its name says.

    Args:
        size: the most bytes in a block.

    Raises:
        BrokenFileError: the file cannot be opened, or the compressed stream breaks; raised after
            the last byte that could be read.
    """
    codec = formats.codec_of(file)
    num_read = 0
    try:
        with open_stream(file, codec) as stream:
            while block := stream.read(size):
                yield block
                num_read += len(block)
        return
    except OSError as error:
        failure = error
    path = formats.printable_path(file)
    if failure.strerror:  # from the operating system; pyarrow's own errors have a message alone
        raise BrokenFileError(f"{path}: {failure.strerror}; left out from byte {num_read} on")
    block = read_tail(file, codec, num_read)
    if block:
        yield block
    raise BrokenFileError(
        f"{path}: the {codec} stream breaks after {num_read + len(block)} bytes ({failure}); "
        "what comes before is kept; download the file again"
    )


def open_stream(file: str, codec: str) -> Any:
    """Open a file for reading bytes, decompressed by `codec` (gzip, zstd, or empty for none)."""
    if not codec:
        return open(file, "rb", buffering=0)
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.OSFile(file), codec)


def read_tail(file: str, codec: str, start: int) -> bytes:
    """Return what a broken stream still contains after its first `start` bytes.

    A read that fails returns nothing, so the tail is read one byte at a time.
    """
    tail = bytearray()
    try:
        with open_stream(file, codec) as stream:
            _skip(stream, start)
            while byte := stream.read(1):
                tail += byte
    except OSError:
        pass
    return bytes(tail)


def _skip(stream: Any, num_bytes: int) -> None:
    """Read past `num_bytes`, or to the end of a file that has become shorter."""
    while num_bytes > 0:
        skipped = stream.read(min(num_bytes, BLOCK_BYTES))
        if not skipped:
            return
        num_bytes -= len(skipped)
