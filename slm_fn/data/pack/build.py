"""Packing: documents into a pack, streaming, atomic, and resumable after a kill.

While a pack is made it grows in `.NAME.unfinished` beside its final path. A killed packer that is
started again with the same inputs, tokenizer and settings resumes from the journal there.

Invariant: the same documents give the same bytes, whatever the number of workers and however often
the packer was killed; a pack is complete or absent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from slm_fn.core import files
from slm_fn.data.io import holdout
from slm_fn.data.io.documents import Document
from slm_fn.data.io.holdout import HoldoutRule, SplitBy
from slm_fn.data.pack import writer
from slm_fn.data.pack.dataset import (
    DTYPE_ON_DISK,
    FORMAT_VERSION,
    METADATA,
    TOKENIZER,
    PackInfo,
    Split,
)
from slm_fn.data.pack.encode import DiskEncoder, EncodeFlat
from slm_fn.data.pack.shards import NEW_PACK, SPLITS, Journal
from slm_fn.data.pack.writer import PackProgress, WriteSettings

PACK_FILES = {METADATA, TOKENIZER, *SPLITS}


class PackTokenizer(NamedTuple):
    """A tokenizer as packing needs it.

    Attributes:
        encode_flat: texts to (ids, offsets); pickled for workers.
        eos: the start token that precedes every document.
        json: the contents of `tokenizer.json`.
        fingerprint: names the tokenizer.
    """

    encode_flat: EncodeFlat
    vocab_size: int
    eos: int
    json: str
    fingerprint: str


class PackSettings(NamedTuple):
    """How documents are cut and split.

    Attributes:
        seq_len: tokens of a window.
        shard_size: tokens of a shard.
        val_fraction: share of the text held out, by a hash of it; ignored when names are given.
        val_names: names of the documents to hold out.
        split_by: whether documents or blocks of some 16 Ki characters are held out.
    """

    seq_len: int
    shard_size: int
    val_fraction: float = 0.0
    val_names: tuple[str, ...] = ()
    split_by: SplitBy = "document"


def pack(
    documents: Iterable[Document],
    tokenizer: PackTokenizer,
    settings: PackSettings,
    out: Path | str,
    workers: int = 0,
    inputs: str = "",
    progress: Callable[[PackProgress], None] = lambda progress: None,
) -> PackInfo:
    """Encode documents into shards under `out`; an old pack is replaced once the new is complete.

    Args:
        workers: processes to encode in, started by spawn; 0 encodes in this one, whose libraries
            use every core already.
        inputs: names what the documents are made from, changes of it included. A killed packer
            resumes only where this, the tokenizer and the settings are equal; empty never resumes.
        progress: called after every batch; when resuming, also before the first.

    Raises:
        ValueError: nothing to train on, or less than one window; a held-out name that no document
            has; an id outside the vocabulary; an output folder with other files than a pack's, or
            one in which another process packs.
    """
    _check_settings(settings, workers)
    out = Path(out).resolve()
    files.check_replaceable(out, PACK_FILES, "a pack")
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    rule = HoldoutRule(settings.val_fraction, frozenset(settings.val_names), settings.split_by)
    chunks = holdout.split_blocks(documents) if settings.split_by == "block" else documents
    encoder = DiskEncoder(tokenizer.encode_flat, tokenizer.vocab_size, DTYPE_ON_DISK[dtype])
    write_settings = WriteSettings(rule, tokenizer.eos, settings.shard_size)
    with files.resumable_folder(out, _job_id(inputs, tokenizer, settings)) as work:
        journal = writer.write(work, chunks, encoder, write_settings, workers, progress)
        info = PackInfo(
            seq_len=settings.seq_len,
            dtype=dtype,
            vocab_size=tokenizer.vocab_size,
            eos=tokenizer.eos,
            fingerprint=tokenizer.fingerprint,
            splits=_splits(journal),
        )
        _check_splits(info, rule.names - set(journal.names_met))
        new = work / NEW_PACK
        (new / TOKENIZER).write_text(tokenizer.json, encoding="utf-8", newline="")
        metadata = msgspec.json.format(msgspec.json.encode(info), indent=2)
        (new / METADATA).write_bytes(metadata + b"\n")
    return info


def _check_settings(settings: PackSettings, workers: int) -> None:
    are_positive = settings.seq_len >= 1 and settings.shard_size >= 1
    if not are_positive or workers < 0 or not 0 <= settings.val_fraction <= 1:
        raise ValueError(
            f"pack: seq_len {settings.seq_len} and shard_size {settings.shard_size} must be at "
            f"least 1, workers {workers} at least 0, val_fraction {settings.val_fraction} "
            "within 0 and 1"
        )


def _job_id(inputs: str, tokenizer: PackTokenizer, settings: PackSettings) -> str:
    """Hash of all that a resumed packer must have in common with the one before; "" for none."""
    if not inputs:
        return ""
    values = (
        FORMAT_VERSION,
        tokenizer.fingerprint,
        tokenizer.eos,
        settings.seq_len,
        settings.shard_size,
        settings.val_fraction,
        sorted(set(settings.val_names)),
        settings.split_by,
    )
    return hashlib.sha256(repr((inputs, values)).encode()).hexdigest()


def _splits(journal: Journal) -> dict[str, Split]:
    return {
        name: Split(state.shards, state.tokens, state.documents, state.num_bytes)
        for name, state in journal.splits.items()
    }


def _check_splits(info: PackInfo, missing_names: frozenset[str]) -> None:
    train = info.splits["train"]
    val = info.splits["val"]
    if train.documents + val.documents == 0:
        raise ValueError("nothing to pack: the corpus holds no documents")
    if missing_names:
        raise ValueError(
            f"no document is named {', '.join(sorted(missing_names))}, which was to be held out; "
            "names are paths below --in, with `:line` in JSONL"
        )
    if train.documents == 0:
        raise ValueError(
            f"all {val.documents} documents are held out and none is left to train on; "
            "hold out less"
        )
    if train.tokens <= info.seq_len:
        raise ValueError(
            f"the corpus has {train.tokens} tokens to train on, less than one window of "
            f"{info.seq_len + 1}; add text or lower seq_len"
        )
