"""Inspect data at a path: packs, prepared corpora, texts, conversations, preference pairs.

Invariant: masks, windows and document boundaries come from the functions that training uses.
"""

from __future__ import annotations

from pathlib import Path

from slm_fn.data.io import folders, typed_rows
from slm_fn.data.pack import dataset as packs
from slm_fn.pipeline.reports import inspect_chat, inspect_corpus, inspect_pack
from slm_fn.pipeline.reports.data_report import DataKind, DataReport
from slm_fn.pipeline.tokenizer_source import load_tokenizer


def inspect(
    path: Path,
    num_samples: int = 3,
    tokenizer: Path | None = None,
) -> DataReport:
    """Inspects the data at a path; its metadata or its first record decides of what kind it is.

    Args:
        path: a pack, a prepared corpus, or files or a folder of texts, chat data or pairs.
        num_samples: samples to include.
        tokenizer: a tokenizer file, or a pack or a model that contains one. Chat data and pairs
            need it.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the data cannot be read, or is chat data and there is no tokenizer.
    """
    kind = detect_kind(path)
    if kind == "pack":
        return inspect_pack.inspect(path, num_samples)
    if kind == "prepared":
        return inspect_corpus.inspect_prepared(path, num_samples)
    source = None if tokenizer is None else load_tokenizer(tokenizer)
    if kind == "text":
        return inspect_corpus.inspect_texts(path, num_samples, source and source.tokenizer)
    if source is None:
        raise ValueError(
            f"{path}: chat data is shown token by token; name a tokenizer with --tokenizer"
        )
    return inspect_chat.inspect(kind, path, num_samples, source)


def detect_kind(path: Path) -> DataKind:
    """Returns the kind of the data at a path, by its metadata or its first record.

    Raises:
        FileNotFoundError: the path does not exist.
    """
    if not path.exists():
        raise FileNotFoundError(f"no file or folder at {path}")
    if path.is_dir():
        if _is_pack(path):
            return "pack"
        if inspect_corpus.find_sources(path):
            return "prepared"
    return _detect_record_kind(path)


def _is_pack(path: Path) -> bool:
    metadata = path / packs.METADATA
    return metadata.is_file() and b'"splits"' in metadata.read_bytes()


def _detect_record_kind(path: Path) -> DataKind:
    try:
        record = next(typed_rows.read_dicts(folders.list_files(path)[0]), {})
    except ValueError:
        return "text"
    if "messages" in record:
        return "chat"
    if record.keys() >= {"chosen", "rejected"}:
        return "pairs"
    return "text"
