"""Packed shards: documents as one long row of ids on the disk, little-endian, memory-mapped, written atomically.

Layout: every document is the start token `eos`, then its ids; documents follow one another in the order they came, and
shards cut that row every `shard_size` tokens wherever that falls. The start token is the only mark of a boundary.

    metadata.json   tokenizer.json   train/shard_00000.bin ...   val/shard_00000.bin ...

While a pack is made it grows in `.NAME.unfinished` beside its place. A killed packer that is started again with the
same inputs, tokenizer and settings goes on from the journal there.

Invariant: the same documents give the same bytes, whatever the number of workers and however often the packer was
killed, and a pack is whole or absent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import msgspec
import numpy as np

from slm_fn.core import files
from slm_fn.data import holdout, packing
from slm_fn.data.encode import Encode, EncodeFlat
from slm_fn.data.holdout import HeldOut, SplitBy
from slm_fn.data.packing import Progress
from slm_fn.data.shards import SPLITS, Shard
from slm_fn.data.sources import Document

FORMAT_VERSION = 1
METADATA, TOKENIZER = "metadata.json", "tokenizer.json"


class Split(msgspec.Struct, frozen=True):
    """The part of a pack that is trained on, or the part held out; `num_bytes` counts the documents' UTF-8 bytes.

    `documents` counts start tokens: with blocks held out, the runs of text between two of them.
    """

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
    """An open pack: each split's shards, memory-mapped, and where in the row each ends; `digest` names its content."""

    path: Path
    info: PackInfo
    shards: dict[str, tuple[np.ndarray, ...]]
    ends: dict[str, np.ndarray]
    digest: str


def pack(
    documents: Iterable[Document],
    encode_flat: EncodeFlat,
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
    split_by: SplitBy = "document",
    workers: int = 0,
    inputs: str = "",
    progress: Callable[[Progress], None] | None = None,
) -> PackInfo:
    """Encode documents into shards under `out`, streaming; an old pack there goes only when the new one is whole.

    Args:
        encode_flat: texts to (ids, offsets).
        shard_size: tokens per shard.
        val_fraction: share of the text held out, by a hash of it; ignored when names are given.
        val_names: the documents to hold out, by name.
        split_by: whether documents are held out whole or blocks of some 16 Ki characters (see `holdout`).
        workers: processes to encode in (started by spawn, so `encode_flat` is pickled); 0 encodes in this one, whose
            libraries use every core already.
        inputs: names what the documents are made from, changes of it included. A killed packer goes on only where
            this and every other argument but the workers are the same; empty, it always begins anew.
        progress: told how far it is, batch by batch; where it goes on, before the first one too.

    Raises:
        ValueError: nothing to train on, less than one window of it, a held-out name that no document has, an id
            outside the vocabulary, a place that holds other files than a pack's, or another process that packs there.
    """
    if seq_len < 1 or shard_size < 1 or workers < 0 or not 0 <= val_fraction <= 1:
        raise ValueError(
            f"pack: seq_len {seq_len} and shard_size {shard_size} must be at least 1, workers {workers} at least 0, "
            f"val_fraction {val_fraction} within 0 and 1"
        )
    out = _place(Path(out).resolve())
    rule, dtype = HeldOut(val_fraction, frozenset(val_names), split_by), "uint16" if vocab_size <= 1 << 16 else "uint32"
    settings = (FORMAT_VERSION, fingerprint, eos, seq_len, shard_size, val_fraction, sorted(rule.names), split_by)
    job = inputs and hashlib.sha256(repr((inputs, settings)).encode()).hexdigest()
    pieces = holdout.blocks(documents) if split_by == "block" else documents
    with files.resumable(out, job) as work:
        encode = Encode(encode_flat, vocab_size, _on_disk(dtype))
        journal = packing.write(work, pieces, encode, rule, eos, shard_size, workers, progress or _ignore)
        splits = {
            name: Split(split.shards, split.tokens, split.documents, split.num_bytes)
            for name, split in journal.splits.items()
        }
        _check(splits, seq_len, rule.names - set(journal.found))
        info = PackInfo(
            seq_len=seq_len, dtype=dtype, vocab_size=vocab_size, eos=eos, fingerprint=fingerprint, splits=splits
        )
        (work / "new" / TOKENIZER).write_text(tokenizer_json, encoding="utf-8", newline="")
        (work / "new" / METADATA).write_bytes(msgspec.json.format(msgspec.json.encode(info), indent=2) + b"\n")
    return info


def _place(out: Path) -> Path:
    """A folder is replaced as a whole, so it may hold nothing but an older pack."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; a pack is a folder")
    others = sorted({file.name for file in out.iterdir()} - {METADATA, TOKENIZER, *SPLITS}) if out.exists() else []
    if others:
        raise ValueError(f"{out} holds other files ({', '.join(others[:3])}); name a new folder for the pack")
    return out


def _ignore(progress: Progress) -> None:
    """Nobody wants to know."""


def _on_disk(dtype: str) -> str:
    return {"uint16": "<u2", "uint32": "<u4"}[dtype]


def _check(splits: dict[str, Split], seq_len: int, missing: frozenset[str]) -> None:
    train, val = splits["train"], splits["val"]
    if train.documents + val.documents == 0:
        raise ValueError("nothing to pack: the corpus holds no documents")
    if missing:
        raise ValueError(
            f"no document is named {', '.join(sorted(missing))}, which was to be held out; names are paths below --in, "
            "with `:line` in JSONL"
        )
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
        if info.splits.keys() != set(SPLITS) or not all(map(_is_inside, info.splits.values())):
            raise ValueError("its splits are not train and val, or a shard lies outside of it")
    except (ValueError, KeyError) as error:  # msgspec's errors are ValueErrors
        raise ValueError(f"{path / METADATA} does not describe a pack: {error}") from None
    mapped = {
        name: tuple(_map(path, shard, dtype, verify) for shard in split.shards) for name, split in info.splits.items()
    }
    ends = {
        name: np.cumsum([shard.tokens for shard in split.shards], dtype=np.int64) for name, split in info.splits.items()
    }
    return Pack(path, info, mapped, ends, hashlib.sha256(raw).hexdigest())


def _is_inside(split: Split) -> bool:
    files = [PurePath(shard.file) for shard in split.shards]
    return not any(file.is_absolute() or ".." in file.parts for file in files)


def _map(root: Path, shard: Shard, dtype: np.dtype, verify: bool) -> np.ndarray:
    file = root / shard.file
    if not file.is_file():
        raise FileNotFoundError(f"the pack {root} lacks its shard {shard.file}; pack again")
    expected, found = shard.tokens * dtype.itemsize, file.stat().st_size
    if found != expected:
        raise ValueError(f"{file} has {found} bytes instead of {expected}: it was cut short or altered; pack again")
    if verify and files.checksum(file) != shard.sha256:
        raise ValueError(f"{file} has another checksum than when it was packed: it was altered; pack again")
    return np.asarray(np.memmap(file, dtype=dtype, mode="r"))  # a plain array: slices of a memmap cost ten times more


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


def rows(pack: Pack, split: str, starts: np.ndarray, length: int) -> np.ndarray:
    """(row, length) ids of a split, int64, from each start on, across shards; the end is followed by the beginning.

    Raises:
        ValueError: the split is empty.
    """
    shards, ends = pack.shards[split], pack.ends[split]
    if not len(ends):
        raise ValueError(f"the pack {pack.path} holds no {split} tokens")
    starts = starts % ends[-1]
    which = np.searchsorted(ends, starts, side="right")
    out = np.empty((len(starts), length), dtype=np.int64)
    for row, i, before_end in zip(out, which.tolist(), (ends[which] - starts).tolist(), strict=True):
        filled = min(before_end, length)
        row[:filled] = shards[i][len(shards[i]) - before_end :][:length]
        while filled < length:
            i = (i + 1) % len(shards)
            part = shards[i][: length - filled]
            row[filled : filled + len(part)] = part
            filled += len(part)
    return out


def take(pack: Pack, split: str, start: int, length: int) -> np.ndarray:
    """`length` ids of a split from `start` on, as int64; past the end it goes on at the beginning.

    Raises:
        ValueError: the split is empty.
    """
    return rows(pack, split, np.array([start]), length)[0]
