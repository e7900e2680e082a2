"""Bytes compressed as a file's name says."""

import gzip

import pyarrow


def compress(data: bytes, name: str) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(data)
    if name.endswith(".zst"):
        return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))
    return data
