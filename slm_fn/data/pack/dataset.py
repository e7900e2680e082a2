"""Packs: documents as one sequence of token ids in little-endian shards, memory-mapped.

Layout: every document is the start token `eos`, then its ids; documents follow one another in input
order, and shards cut that sequence every `shard_size` tokens, anywhere. The start token is the only
mark of a document boundary.

    metadata.json   tokenizer.json   train/shard_00000.bin ...   val/shard_00000.bin ...

Invariant: an open pack has the shards that its metadata describes, with their sizes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import msgspec
import numpy as np

from slm_fn.core import files
from slm_fn.data.pack.shards import SPLITS, Shard

FORMAT_VERSION = 1
METADATA = "metadata.json"
TOKENIZER = "tokenizer.json"
DTYPE_ON_DISK = {"uint16": "<u2", "uint32": "<u4"}


class Split(msgspec.Struct, frozen=True):
    """The training or the held-out part of a pack; `num_bytes` counts the UTF-8 of its documents.

    `documents` counts start tokens: where blocks are held out, the runs of text between two.
    """

    shards: tuple[Shard, ...] = ()
    tokens: int = 0
    documents: int = 0
    num_bytes: int = 0


class PackInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of `metadata.json`; of the splits `train` and `val` one may be empty."""

    format_version: int = FORMAT_VERSION
    seq_len: int
    dtype: str
    vocab_size: int
    eos: int
    fingerprint: str
    splits: dict[str, Split]


class Pack(NamedTuple):
    """An open pack.

    Attributes:
        shards: each split's shards, memory-mapped.
        ends: where in the split's sequence each shard ends.
        digest: SHA-256 of the metadata, which names the content.
    """

    path: Path
    info: PackInfo
    shards: dict[str, tuple[np.ndarray, ...]]
    ends: dict[str, np.ndarray]
    digest: str


def open_pack(path: Path | str, verify: bool = False) -> Pack:
    """Memory-map a pack.

    Args:
        verify: compare the checksum of every shard as well, which reads all of them.

    Raises:
        FileNotFoundError: there is no pack, or one of its shards is missing.
        ValueError: it is of another format, or a shard was truncated or altered.
    """
    path = Path(path)
    try:
        raw = (path / METADATA).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"no pack at {path} (no {METADATA} there); make one with `slm data pack`"
        ) from None
    try:
        info = _parse_metadata(raw)
    except (ValueError, KeyError) as error:  # msgspec's errors are ValueErrors
        raise ValueError(f"{path / METADATA} does not describe a pack: {error}") from None
    dtype = np.dtype(DTYPE_ON_DISK[info.dtype])
    shards: dict[str, tuple[np.ndarray, ...]] = {}
    ends: dict[str, np.ndarray] = {}
    for name, split in info.splits.items():
        shards[name] = tuple(_map_shard(path, shard, dtype, verify) for shard in split.shards)
        ends[name] = np.cumsum([shard.tokens for shard in split.shards], dtype=np.int64)
    return Pack(path, info, shards, ends, hashlib.sha256(raw).hexdigest())


def _parse_metadata(raw: bytes) -> PackInfo:
    """Parse and check `metadata.json`."""
    version = msgspec.json.decode(raw, type=dict[str, Any]).get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"format version {version}, this program reads {FORMAT_VERSION}; pack again"
        )
    info = msgspec.json.decode(raw, type=PackInfo)
    DTYPE_ON_DISK[info.dtype]  # KeyError
    are_inside = all(_is_inside(split) for split in info.splits.values())
    if info.splits.keys() != set(SPLITS) or not are_inside:
        raise ValueError("its splits are not train and val, or a shard lies outside of it")
    return info


def _is_inside(split: Split) -> bool:
    """Whether all shards have relative paths that stay in the pack."""
    paths = [PurePath(shard.file) for shard in split.shards]
    return not any(path.is_absolute() or ".." in path.parts for path in paths)


def _map_shard(root: Path, shard: Shard, dtype: np.dtype[Any], verify: bool) -> np.ndarray:
    file = root / shard.file
    if not file.is_file():
        raise FileNotFoundError(f"the pack {root} lacks its shard {shard.file}; pack again")
    expected = shard.tokens * dtype.itemsize
    size = file.stat().st_size
    if size != expected:
        raise ValueError(
            f"{file} has {size} bytes instead of {expected}: it was truncated or altered; "
            "pack again"
        )
    if verify and files.checksum(file) != shard.sha256:
        raise ValueError(
            f"{file} has another checksum than when it was packed: it was altered; pack again"
        )
    # A plain array: slices of a memmap object cost ten times more.
    return np.asarray(np.memmap(file, dtype=dtype, mode="r"))


def check_tokenizer(pack: Pack, fingerprint: str) -> None:
    """Check that a pack was made with this tokenizer.

    Raises:
        ValueError: it was made with another one.
    """
    if fingerprint != pack.info.fingerprint:
        raise ValueError(
            f"the tokenizer does not belong to this pack: {pack.path} was made with "
            f"{pack.info.fingerprint[:12]}, this is {fingerprint[:12]}; use the tokenizer.json "
            "inside the pack, or pack again"
        )


def read_rows(pack: Pack, split: str, starts: np.ndarray, length: int) -> np.ndarray:
    """(rows, length) int64 token ids of a split from each start on, read as a ring of shards.

    Args:
        starts: indices into the split's tokens, taken modulo their number.

    Raises:
        ValueError: the split is empty.
    """
    shards = pack.shards[split]
    ends = pack.ends[split]
    if not len(ends):
        raise ValueError(f"the pack {pack.path} holds no {split} tokens")
    starts = starts % ends[-1]
    shard_numbers = np.searchsorted(ends, starts, side="right")
    tokens_left = ends[shard_numbers] - starts
    out = np.empty((len(starts), length), dtype=np.int64)
    for row, number, left in zip(out, shard_numbers.tolist(), tokens_left.tolist(), strict=True):
        shard = shards[number]
        filled = min(left, length)
        row[:filled] = shard[len(shard) - left :][:length]
        while filled < length:
            number = (number + 1) % len(shards)
            head = shards[number][: length - filled]
            row[filled : filled + len(head)] = head
            filled += len(head)
    return out
