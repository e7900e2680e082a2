"""How fast tokenizers are learnt, texts encoded and packs written here, beside Hugging Face tokenizers in the same run.

Invariant: both sides learn from the same documents with the same split, and the ids they encode are compared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from slm_fn.bench.measure import Job, contest
from slm_fn.data import sources
from slm_fn.pipeline.pack import PackConfig, pack_files
from slm_fn.text import bpe, patterns
from slm_fn.text.tokenizer import Tokenizer


class Report(msgspec.Struct, frozen=True):
    """MB are millions of bytes of text; ratios above 1 say that we are faster; peaks come on top of the text."""

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


def run(
    paths: Sequence[Path],
    vocab_size: int = 32_000,
    method: bpe.Method = "fast",
    repeat: int = 5,
    note: Callable[[str], None] = lambda line: None,
) -> Report:
    """Learn a vocabulary, encode and pack the text of some files, and let Hugging Face tokenizers do the same.

    Args:
        note: told a line after every run.

    Raises:
        ValueError: there is no text in the files.
    """
    documents = _read(paths)
    megabytes = sum(len(text.encode()) for text in documents) / 1e6
    with tempfile.TemporaryDirectory(prefix="slm-bench-") as folder:
        file = Path(folder) / "tokenizer.json"
        made = bpe.train(documents, vocab_size, method=method)
        made.save(file)
        theirs = [row.ids for row in _library(file).encode_batch(documents[:200], add_special_tokens=False)]
        jobs: dict[str, Job] = {
            "train": (_learner, _learn, (paths, vocab_size, method)),
            "train, Hugging Face": (_learner, _learn_theirs, (paths, vocab_size, method)),
            "encode": (_encoder, _encode, (paths, file)),
            "encode, Hugging Face": (_encoder, _encode_theirs, (paths, file)),
            "pack": (_packer, _pack, (paths, file, folder)),
        }
        done = contest(jobs, repeat, note)
    return Report(
        train_mb_per_s=megabytes / done.seconds("train"),
        train_ratio_hf=done.ratio("train", "train, Hugging Face"),
        encode_mb_per_s=megabytes / done.seconds("encode"),
        encode_ratio_hf=done.ratio("encode", "encode, Hugging Face"),
        pack_mb_per_s=megabytes / done.seconds("pack"),
        pack_ratio_hf=done.ratio("pack", "encode, Hugging Face"),
        peak_memory_mib=done.peak_mib("train"),
        hf_train_mb_per_s=megabytes / done.seconds("train, Hugging Face"),
        hf_encode_mb_per_s=megabytes / done.seconds("encode, Hugging Face"),
        hf_peak_memory_mib=done.peak_mib("train, Hugging Face"),
        text_mb=megabytes,
        vocab_size=made.vocab_size,
        method=method,
        engine=made.engine.name,
        identical_ids=made.encode_batch(documents[:200]) == theirs,
        repeat=repeat,
    )


def rows(report: Report) -> list[list[Any]]:
    """The figures of a report, for a table."""
    told = msgspec.structs.asdict(report).items()
    return [[name, round(value, 2) if isinstance(value, float) else value] for name, value in told]


def _read(paths: Sequence[Path]) -> list[str]:
    return [document.text for document in sources.read(paths)]


def _library(file: Path) -> tokenizers.Tokenizer:
    theirs = tokenizers.Tokenizer.from_file(str(file))
    theirs.encode_special_tokens = True
    return theirs


def _learner(paths: Sequence[Path], vocab_size: int, method: bpe.Method) -> tuple[list[str], int, bpe.Method]:
    return _read(paths), vocab_size, method


def _learn(given: tuple[list[str], int, bpe.Method]) -> None:
    documents, vocab_size, method = given
    bpe.train(documents, vocab_size, method=method)


def _learn_theirs(given: tuple[list[str], int, bpe.Method]) -> None:
    documents, vocab_size, _ = given
    theirs = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(patterns.PATTERNS["qwen2"]), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(bpe.SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator(documents, trainer)


def _encoder(paths: Sequence[Path], file: Path) -> tuple[list[str], Path]:
    return _read(paths), file


def _encode(given: tuple[list[str], Path]) -> None:
    documents, file = given
    Tokenizer.load(file).encode_flat(documents)


def _encode_theirs(given: tuple[list[str], Path]) -> None:
    documents, file = given
    theirs = _library(file)
    for begin in range(0, len(documents), 1000):  # all at once, its offsets alone would fill the memory
        theirs.encode_batch(documents[begin : begin + 1000], add_special_tokens=False)


def _packer(*given: Any) -> tuple[Any, ...]:
    return given


def _pack(given: tuple[Any, ...]) -> None:
    """From the files to the shards: reading, encoding, hashing and writing."""
    paths, file, folder = given
    pack_files(PackConfig(), Tokenizer.load(file), paths, Path(folder) / "packed", live=False, note=lambda line: None)
