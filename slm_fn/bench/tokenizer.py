"""`slm bench tokenizer`: training, encoding and packing, compared with Hugging Face.

Invariant: both sides train on the same documents with the same split pattern, and the ids that they
encode are compared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from slm_fn.bench.rounds import Comparison, Note, TimedJob, compare, no_note
from slm_fn.data.io import documents as document_files
from slm_fn.pipeline.stages.pack import PackConfig, pack_files
from slm_fn.text import patterns
from slm_fn.text.tokenizer import Tokenizer
from slm_fn.text.training import bpe, vocabulary

NUM_COMPARED_DOCUMENTS = 200
HF_BATCH_SIZE = 1000
"""Documents per call of the Hugging Face encoder: the offsets of all at once would fill memory."""
HF_TRAIN = "train, Hugging Face"
HF_ENCODE = "encode, Hugging Face"


class TokenizerReport(msgspec.Struct, frozen=True):
    """Medians over rounds.

    MB are millions of bytes of text. A ratio above 1 means that slm is faster. Peak memory is
    counted above that of the loaded text.
    """

    train_mb_per_s: float
    train_ratio_hf: float
    encode_mb_per_s: float
    encode_ratio_hf: float
    pack_mb_per_s: float
    pack_ratio_hf: float
    peak_memory_mib: float
    hf_train_mb_per_s: float
    hf_encode_mb_per_s: float
    hf_peak_memory_mib: float
    text_mb: float
    vocab_size: int
    method: str
    engine: str
    identical_ids: bool
    repeat: int


class _TrainingTask(NamedTuple):
    documents: list[str]
    vocab_size: int
    method: bpe.BpeMethod


class _EncodingTask(NamedTuple):
    documents: list[str]
    tokenizer_file: Path


class _PackingTask(NamedTuple):
    paths: Sequence[Path]
    tokenizer_file: Path
    out: Path


def run(
    paths: Sequence[Path],
    vocab_size: int = 32_000,
    method: bpe.BpeMethod = "fast",
    repeat: int = 5,
    note: Note = no_note,
) -> TokenizerReport:
    """Measures training, encoding and packing of the text in some files, here and by Hugging Face.

    Args:
        paths: files and folders with text.
        vocab_size: number of tokens of the trained vocabulary.
        method: the BPE training algorithm.
        repeat: number of rounds.
        note: gets a line after every run.

    Raises:
        ValueError: the files hold no text.
    """
    documents = _read_documents(paths)
    with tempfile.TemporaryDirectory(prefix="slm-bench-") as folder:
        tokenizer_file = Path(folder) / "tokenizer.json"
        tokenizer = bpe.train(documents, vocab_size, method=method)
        tokenizer.save(tokenizer_file)
        identical_ids = _encodes_identically(tokenizer, tokenizer_file, documents)
        prepare_training = partial(_prepare_training, paths, vocab_size, method)
        prepare_encoding = partial(_prepare_encoding, paths, tokenizer_file)
        packing_task = _PackingTask(paths, tokenizer_file, Path(folder) / "packed")
        jobs = {
            "train": TimedJob(prepare_training, _train),
            HF_TRAIN: TimedJob(prepare_training, _train_hf),
            "encode": TimedJob(prepare_encoding, _encode),
            HF_ENCODE: TimedJob(prepare_encoding, _encode_hf),
            "pack": TimedJob(partial(_prepare_packing, packing_task), _pack),
        }
        comparison = compare(jobs, repeat, note)
    return _make_report(comparison, documents, tokenizer, method, identical_ids)


def rows(report: TokenizerReport) -> list[list[Any]]:
    """Returns the figures of a report as the rows of a table: name and value."""
    table: list[list[Any]] = []
    for name, value in msgspec.structs.asdict(report).items():
        rounded = round(value, 2) if isinstance(value, float) else value
        table.append([name, rounded])
    return table


def _make_report(
    comparison: Comparison,
    documents: Sequence[str],
    tokenizer: Tokenizer,
    method: str,
    identical_ids: bool,
) -> TokenizerReport:
    text_mb = sum(len(text.encode()) for text in documents) / 1e6

    def mb_per_s(name: str) -> float:
        return text_mb / comparison.median_seconds(name)

    return TokenizerReport(
        train_mb_per_s=mb_per_s("train"),
        train_ratio_hf=comparison.speedup("train", HF_TRAIN),
        encode_mb_per_s=mb_per_s("encode"),
        encode_ratio_hf=comparison.speedup("encode", HF_ENCODE),
        pack_mb_per_s=mb_per_s("pack"),
        pack_ratio_hf=comparison.speedup("pack", HF_ENCODE),
        peak_memory_mib=comparison.median_peak_mib("train"),
        hf_train_mb_per_s=mb_per_s(HF_TRAIN),
        hf_encode_mb_per_s=mb_per_s(HF_ENCODE),
        hf_peak_memory_mib=comparison.median_peak_mib(HF_TRAIN),
        text_mb=text_mb,
        vocab_size=tokenizer.vocab_size,
        method=method,
        engine=tokenizer.encoder_backend.name,
        identical_ids=identical_ids,
        repeat=len(comparison.runs["train"]),
    )


def _encodes_identically(
    tokenizer: Tokenizer, tokenizer_file: Path, documents: Sequence[str]
) -> bool:
    compared = list(documents[:NUM_COMPARED_DOCUMENTS])
    encodings = _load_hf(tokenizer_file).encode_batch(compared, add_special_tokens=False)
    return tokenizer.encode_batch(compared) == [encoding.ids for encoding in encodings]


def _read_documents(paths: Sequence[Path]) -> list[str]:
    return [document.text for document in document_files.read(paths)]


def _load_hf(tokenizer_file: Path) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    tokenizer.encode_special_tokens = True
    return tokenizer


def _prepare_training(
    paths: Sequence[Path], vocab_size: int, method: bpe.BpeMethod
) -> _TrainingTask:
    return _TrainingTask(_read_documents(paths), vocab_size, method)


def _train(task: _TrainingTask) -> None:
    bpe.train(task.documents, task.vocab_size, method=task.method)


def _train_hf(task: _TrainingTask) -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    pattern = tokenizers.Regex(patterns.SPLIT_PATTERNS["qwen2"])
    split = pre_tokenizers.Split(pattern, behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    trainer = trainers.BpeTrainer(
        vocab_size=task.vocab_size,
        min_frequency=2,
        special_tokens=list(vocabulary.SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(task.documents, trainer)


def _prepare_encoding(paths: Sequence[Path], tokenizer_file: Path) -> _EncodingTask:
    return _EncodingTask(_read_documents(paths), tokenizer_file)


def _encode(task: _EncodingTask) -> None:
    Tokenizer.load(task.tokenizer_file).encode_flat(task.documents)


def _encode_hf(task: _EncodingTask) -> None:
    tokenizer = _load_hf(task.tokenizer_file)
    for start in range(0, len(task.documents), HF_BATCH_SIZE):
        batch = task.documents[start : start + HF_BATCH_SIZE]
        tokenizer.encode_batch(batch, add_special_tokens=False)


def _prepare_packing(task: _PackingTask) -> _PackingTask:
    return task


def _pack(task: _PackingTask) -> None:
    """Goes from text files to shards: reading, encoding, hashing and writing."""
    tokenizer = Tokenizer.load(task.tokenizer_file)
    pack_files(PackConfig(), tokenizer, task.paths, task.out, live=False, note=no_note)
