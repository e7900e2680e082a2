"""Inspect a pack: counts, document lengths, checksums and decoded training windows.

Invariant: a sample is a window as training reads it, and every shard's checksum is verified.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from slm_fn.data.batches import stream
from slm_fn.data.pack import dataset as packs
from slm_fn.data.pack.dataset import Pack
from slm_fn.pipeline.model_folder import TOKENIZER
from slm_fn.pipeline.reports import text_plots
from slm_fn.pipeline.reports.data_report import DataReport, JsonObject
from slm_fn.pipeline.reports.histogram import LengthHistogram, make_histogram
from slm_fn.text.tokenizer import Tokenizer

CHUNK_TOKENS = 1 << 20
"""Tokens of a shard that are counted at once."""


class _SplitCounts(NamedTuple):
    """Tokens of each document, its start token included, and occurrences of each token."""

    document_lengths: np.ndarray
    token_counts: np.ndarray


def inspect(path: Path, num_samples: int) -> DataReport:
    """Inspects a pack; the samples are the first windows of each split.

    Raises:
        ValueError: a shard's checksum is wrong, or the tokenizer is not the one of the pack.
    """
    pack = packs.open_pack(path, verify=True)
    tokenizer = Tokenizer.load(path / TOKENIZER)
    packs.check_tokenizer(pack, tokenizer.fingerprint)
    figures: JsonObject = {
        "vocab_size": pack.info.vocab_size,
        "dtype": pack.info.dtype,
        "seq_len": pack.info.seq_len,
        "fingerprint": pack.info.fingerprint,
    }
    samples: list[JsonObject] = []
    lengths: dict[str, LengthHistogram] = {}
    all_lengths: list[np.ndarray] = []
    token_counts = np.zeros(pack.info.vocab_size, dtype=np.int64)
    for split in pack.info.splits:
        figures |= _split_figures(pack, split)
        counts = _count_split(pack, split)
        token_counts += counts.token_counts
        if len(counts.document_lengths):
            lengths[f"{split}: document"] = make_histogram(counts.document_lengths)
            figures[f"{split}: boundaries found"] = len(counts.document_lengths)
            all_lengths.append(counts.document_lengths)
        samples += _decode_windows(pack, split, tokenizer, num_samples)
    figures["tokens of the vocabulary that never occur"] = int((token_counts == 0).sum())
    panels = [
        text_plots.length_panel(np.concatenate(all_lengths), "documents", "tokens"),
        text_plots.rank_panel(token_counts),
    ]
    return DataReport(
        kind="pack",
        figures=figures,
        samples=samples,
        lengths=lengths,
        panels=panels,
    )


def _split_figures(pack: Pack, name: str) -> JsonObject:
    split = pack.info.splits[name]
    total_tokens = sum(info.tokens for info in pack.info.splits.values())
    return {
        f"{name}: documents": split.documents,
        f"{name}: tokens": split.tokens,
        f"{name}: bytes": split.num_bytes,
        f"{name}: share of tokens": round(split.tokens / total_tokens, 4),
        f"{name}: bytes per token": round(split.num_bytes / max(1, split.tokens), 3),
        f"{name}: shards, checksums right": len(split.shards),
    }


def _count_split(pack: Pack, split: str) -> _SplitCounts:
    """Measures the documents of a split by their start tokens, across the borders of shards."""
    starts: list[np.ndarray] = []
    token_counts = np.zeros(pack.info.vocab_size, dtype=np.int64)
    position = 0
    for shard in pack.shards[split]:
        for begin in range(0, len(shard), CHUNK_TOKENS):
            chunk = shard[begin : begin + CHUNK_TOKENS]
            starts.append(np.flatnonzero(chunk == pack.info.eos) + position)
            token_counts += np.bincount(chunk, minlength=len(token_counts))
            position += len(chunk)
    boundaries = np.concatenate([*starts, [position]]).astype(np.int64)
    return _SplitCounts(np.diff(boundaries), token_counts)


def _decode_windows(
    pack: Pack,
    split: str,
    tokenizer: Tokenizer,
    num_samples: int,
) -> list[JsonObject]:
    num_windows = min(num_samples, stream.num_windows(pack, split))
    samples = []
    for i in range(num_windows):
        tokens = stream.lm_batch(pack, split, 0, i, 1).tokens[0].tolist()
        samples.append({"split": split, "window": i, "text": tokenizer.decode(tokens)})
    return samples
