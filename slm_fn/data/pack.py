"""Packed shards: documents as one long row of ids on the disk, little-endian, memory-mapped, written atomically.

Layout: every document is the start token `eos`, then its ids; documents follow one another in the order they came, and
shards cut that row every `shard_size` tokens wherever that falls. The start token is the only mark of a boundary.

    metadata.json   tokenizer.json   train/shard_00000.bin ...   val/shard_00000.bin ...

Invariant: the same documents give the same bytes, whatever the number of workers, and a pack is whole or absent.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
import numpy as np

from slm_fn.core import files
from slm_fn.data.encode import Encode, EncodeBatch, encoded
from slm_fn.data.sources import Document

FORMAT_VERSION = 1
METADATA = "metadata.json"


class Shard(msgspec.Struct, frozen=True):
    """One file of tokens."""

    file: str
    tokens: int
    sha256: str


class Split(msgspec.Struct, frozen=True):
    """The part of a pack that is trained on, or the part held out; `num_bytes` counts the documents' UTF-8 bytes."""

    shards: tuple[Shard, ...] = ()
    tokens: int = 0
    documents: int = 0
    num_bytes: int = 0


class PackInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What `metadata.json` says; `splits` has `train` and `val`, either of which may be empty but not both."""

    format_version: int = FORMAT_VERSION
    seq_len: int
    dtype: str
    vocab_size: int
    eos: int
    fingerprint: str
    splits: dict[str, Split]


class Pack(NamedTuple):
    """An open pack: the shards of each split, memory-mapped; `digest` names its content."""

    path: Path
    info: PackInfo
    shards: dict[str, tuple[np.ndarray, ...]]
    digest: str


def held_out(name: str, fraction: float) -> bool:
    """Whether a document belongs to the held-out split, by a hash of its name: adding documents moves no other.

    Example:
        >>> held_out("macbeth", 0.0), held_out("macbeth", 1.0)
        (False, True)
    """
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=7).digest()
    return int.from_bytes(digest, "big") < fraction * (1 << 56)


class _Writer:
    """Appends tokens to the shards of one split, hashing as it goes; one shard is open at a time."""

    def __init__(self, root: Path, split: str, dtype: str, shard_size: int) -> None:
        self.root, self.split, self.dtype, self.shard_size = root, split, dtype, shard_size
        self.shards: list[Shard] = []
        self.documents = self.num_bytes = self.room = 0
        self.file: BinaryIO | None = None

    def append(self, ids: np.ndarray, num_bytes: int) -> None:
        self.documents += 1
        self.num_bytes += num_bytes
        while len(ids):
            if self.file is None:
                self.name = f"{self.split}/shard_{len(self.shards):05d}.bin"
                (self.root / self.split).mkdir(exist_ok=True)
                self.file = (self.root / self.name).open("wb")
                self.hash, self.room = hashlib.sha256(), self.shard_size
            part, ids = ids[: self.room].tobytes(), ids[self.room :]
            self.file.write(part)
            self.hash.update(part)
            self.room -= len(part) // np.dtype(self.dtype).itemsize
            if self.room == 0:
                self.close()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.shards.append(Shard(self.name, self.shard_size - self.room, self.hash.hexdigest()))
            self.file = None

    def finish(self) -> Split:
        self.close()
        return Split(tuple(self.shards), sum(s.tokens for s in self.shards), self.documents, self.num_bytes)


def pack(
    documents: Iterable[Document],
    encode_batch: EncodeBatch,
    out: Path | str,
    *,
    eos: int,
    seq_len: int,
    shard_size: int,
    tokenizer_json: str,
    fingerprint: str,
    vocab_size: int,
    val_fraction: float = 0.0,
    val_names: Sequence[str] = (),
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> PackInfo:
    """Encode documents into shards under `out`, streaming; an old pack there goes only when the new one is whole.

    Args:
        shard_size: tokens per shard.
        val_fraction: share of documents held out, by a hash of their names; ignored when names are given.
        val_names: the documents to hold out, by name.
        workers: processes to encode in (started by spawn, so `encode_batch` is pickled); 0 encodes in this one, which
            is faster on a small corpus: Hugging Face's encoder already uses every core.
        progress: told the documents and tokens written so far.

    Raises:
        ValueError: nothing to train on, less than one window of it, a held-out name that no document has, or an id
            outside the vocabulary.
    """
    if seq_len < 1 or shard_size < 1 or not 0 <= val_fraction <= 1:
        raise ValueError(
            f"pack: seq_len {seq_len} and shard_size {shard_size} must be at least 1, "
            f"val_fraction {val_fraction} within 0 and 1"
        )
    dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
    names, missing = frozenset(val_names), set(val_names)
    with files.folder(out) as root:
        writers = {split: _Writer(root, split, _on_disk(dtype), shard_size) for split in ("train", "val")}
        try:
            tokens = 0
            stream = encoded(documents, Encode(encode_batch, eos, vocab_size), workers)
            for count, (document, ids) in enumerate(stream, 1):
                is_val = document.name in names if names else held_out(document.name, val_fraction)
                missing.discard(document.name)
                writers["val" if is_val else "train"].append(ids.astype(_on_disk(dtype)), len(document.text.encode()))
                tokens += len(ids)
                if progress is not None:
                    progress(count, tokens)
        finally:
            for writer in writers.values():
                writer.close()
        splits = {split: writer.finish() for split, writer in writers.items()}
        _check(splits, seq_len, missing)
        info = PackInfo(
            seq_len=seq_len, dtype=dtype, vocab_size=vocab_size, eos=eos, fingerprint=fingerprint, splits=splits
        )
        (root / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8", newline="")
        (root / METADATA).write_bytes(msgspec.json.format(msgspec.json.encode(info), indent=2) + b"\n")
    return info


def _on_disk(dtype: str) -> str:
    return {"uint16": "<u2", "uint32": "<u4"}[dtype]


def _check(splits: dict[str, Split], seq_len: int, missing: set[str]) -> None:
    train, val = splits["train"], splits["val"]
    if train.documents + val.documents == 0:
        raise ValueError("nothing to pack: the corpus holds no documents")
    if missing:
        raise ValueError(f"no document is named {', '.join(sorted(missing))}, which was to be held out")
    if train.documents == 0:
        raise ValueError(f"all {val.documents} documents are held out and none is left to train on; hold out less")
    if train.tokens <= seq_len:
        raise ValueError(
            f"the corpus has {train.tokens} tokens to train on, less than one window of {seq_len + 1}; "
            "add text or lower seq_len"
        )


def open_pack(path: Path | str, verify: bool = False) -> Pack:
    """Memory-map a pack.

    Args:
        verify: compare every shard's checksum too, which reads it all.

    Raises:
        FileNotFoundError: there is no pack, or one of its shards is missing.
        ValueError: it is of another format, or a shard was cut short or altered.
    """
    path = Path(path)
    try:
        raw = (path / METADATA).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"no pack at {path} (no {METADATA} there); make one with `slm data pack`") from None
    try:
        version = msgspec.json.decode(raw, type=dict[str, Any]).get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(f"format version {version}, this program reads {FORMAT_VERSION}; pack again")
        info = msgspec.json.decode(raw, type=PackInfo)
        dtype = np.dtype(_on_disk(info.dtype))
    except (ValueError, KeyError) as error:  # msgspec's errors are ValueErrors
        raise ValueError(f"{path / METADATA} does not describe a pack: {error}") from None
    shards = {
        name: tuple(_map(path, shard, dtype, verify) for shard in split.shards) for name, split in info.splits.items()
    }
    return Pack(path, info, shards, hashlib.sha256(raw).hexdigest())


def _map(root: Path, shard: Shard, dtype: np.dtype, verify: bool) -> np.ndarray:
    file = root / shard.file
    if not file.is_file():
        raise FileNotFoundError(f"the pack {root} lacks its shard {shard.file}; pack again")
    expected, found = shard.tokens * dtype.itemsize, file.stat().st_size
    if found != expected:
        raise ValueError(f"{file} has {found} bytes instead of {expected}: it was cut short or altered; pack again")
    if verify and files.checksum(file) != shard.sha256:
        raise ValueError(f"{file} has another checksum than when it was packed: it was altered; pack again")
    return np.memmap(file, dtype=dtype, mode="r")


def check_tokenizer(pack: Pack, fingerprint: str) -> None:
    """Accept the tokenizer that a pack was made with.

    Raises:
        ValueError: it is another one.
    """
    if fingerprint != pack.info.fingerprint:
        raise ValueError(
            f"the tokenizer does not belong to this pack: {pack.path} was made with {pack.info.fingerprint[:12]}, "
            f"this is {fingerprint[:12]}; use the tokenizer.json inside the pack, or pack again"
        )


def take(pack: Pack, split: str, start: int, length: int) -> np.ndarray:
    """`length` ids of a split from `start` on, as int64, across shards; past the end it goes on at the beginning.

    Raises:
        ValueError: the split is empty.
    """
    shards, total = pack.shards[split], pack.info.splits[split].tokens
    if total == 0:
        raise ValueError(f"the pack {pack.path} holds no {split} tokens")
    ends = list(accumulate(len(shard) for shard in shards))
    out = np.empty(length, dtype=np.int64)
    filled = 0
    while filled < length:
        place = (start + filled) % total
        i = bisect_right(ends, place)
        part = shards[i][place - ends[i] + len(shards[i]) :][: length - filled]
        out[filled : filled + len(part)] = part
        filled += len(part)
    return out
