"""Inspect a corpus: the texts of files, or the sources that `slm data prepare` wrote.

Invariant: an inspection writes nothing, and verifies the checksum of a prepared file before it
reads the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TypeVar

import msgspec

from slm_fn.core import files
from slm_fn.data.corpus import source_folder
from slm_fn.data.corpus.source_folder import SourceMetadata, SourceState
from slm_fn.data.io import documents, typed_rows
from slm_fn.data.io.documents import Document
from slm_fn.pipeline.reports import inspect_tokenizer, text_plots
from slm_fn.pipeline.reports.data_report import (
    MAX_SAMPLE_CHARACTERS,
    DataReport,
    JsonObject,
)
from slm_fn.pipeline.reports.histogram import LengthHistogram, make_histogram
from slm_fn.pipeline.reports.text_plots import Panel
from slm_fn.text.tokenizer import Tokenizer

Decoded = TypeVar("Decoded")
MAX_MEASURED_DOCUMENTS = 100_000
"""Documents of a prepared source whose lengths are measured; its counts are those of all."""
MAX_LISTED_PROBLEMS = 20
COUNT_NAMES = {
    "read": "documents read",
    "kept": "documents kept",
    "changed": "of these changed",
    "bytes_read": "bytes read",
    "bytes_kept": "bytes kept",
}
"""Fields of `source_folder.SourceCounts` and the names of their figures."""
MESSAGE_FIELDS = ("messages", "prompt", "chosen", "rejected")


def inspect_prepared(path: Path, num_samples: int) -> DataReport:
    """Inspects prepared sources: what was read, kept and removed by which rule, and lengths.

    Args:
        path: the folder of a source, or a folder of such folders.
        num_samples: documents of each source to include.

    Raises:
        ValueError: the checksum of a prepared file is wrong.
    """
    figures: JsonObject = {}
    samples: list[JsonObject] = []
    lengths: dict[str, LengthHistogram] = {}
    removed: Counter[str] = Counter()
    all_sizes: list[int] = []
    for folder, source in find_sources(path).items():
        name = folder.name
        removed_here = _removed_documents(source)
        removed.update(removed_here)
        figures |= _source_figures(name, source, removed_here)
        _verify_checksums(folder, source)
        figures[f"{name}: part files, checksums right"] = len(source.parts)
        texts, sizes = _measure_texts(_read_texts(folder, source), num_samples)
        samples += [{"source": name, "text": text} for text in texts]
        if sizes:
            lengths[f"{name}: document"] = make_histogram(sizes)
            all_sizes += sizes
    panels: list[Panel] = []
    if all_sizes:
        panels.append(text_plots.length_panel(all_sizes, "documents", "bytes"))
    if removed:
        title = "Removed or repaired, by reason"
        panels.append(text_plots.count_panel(removed, title, "documents"))
    return DataReport(
        kind="prepared",
        figures=figures,
        samples=samples,
        lengths=lengths,
        panels=panels,
    )


def find_sources(path: Path) -> dict[Path, SourceMetadata | SourceState]:
    """Returns the metadata of the prepared sources at a path: the folder itself and those in it.

    A source whose preparation is not finished has a state in place of the metadata.
    """
    sources: dict[Path, SourceMetadata | SourceState] = {}
    sub_folders = sorted(file for file in path.iterdir() if file.is_dir())
    for folder in [path, *sub_folders]:
        metadata = _decode_file(folder / source_folder.METADATA, SourceMetadata)
        source = metadata or _decode_file(folder / source_folder.STATE, SourceState)
        if source is not None:
            sources[folder] = source
    return sources


def _decode_file(file: Path, kind: type[Decoded]) -> Decoded | None:
    """Returns the content of a JSON file, or None if it is missing or of another kind."""
    with suppress(FileNotFoundError, msgspec.DecodeError):
        return msgspec.json.decode(file.read_bytes(), type=kind)
    return None


def _removed_documents(source: SourceMetadata | SourceState) -> dict[str, int]:
    """Returns how many documents were removed or repaired for which reason, without zeros."""
    counts = source.counts
    by_reason = {**counts.removed, **counts.dropped, "could not be read": counts.problems}
    return {reason: number for reason, number in by_reason.items() if number}


def _source_figures(
    name: str,
    source: SourceMetadata | SourceState,
    removed: dict[str, int],
) -> JsonObject:
    is_finished = isinstance(source, SourceMetadata)
    figures: JsonObject = {f"{name}: status": "finished" if is_finished else "under way"}
    for field, count_name in COUNT_NAMES.items():
        figures[f"{name}: {count_name}"] = getattr(source.counts, field)
    if isinstance(source, SourceMetadata):
        figures[f"{name}: tokens, estimated"] = source.tokens_estimated
    for reason, number in removed.items():
        figures[f"{name}: removed, {reason}"] = number
    return figures


def _verify_checksums(folder: Path, source: SourceMetadata | SourceState) -> None:
    altered = [
        part.file for part in source.parts if files.checksum(folder / part.file) != part.sha256
    ]
    if altered:
        raise ValueError(
            f"{folder / altered[0]} has another checksum than when it was written; prepare it again"
        )


def _read_texts(folder: Path, source: SourceMetadata | SourceState) -> Iterator[str]:
    """Yields the text of each record; of a conversation or a pair, that of its messages."""
    for part in source.parts:
        for record in typed_rows.read_dicts(folder / part.file):
            yield _record_text(record)


def _record_text(record: JsonObject) -> str:
    if "text" in record:
        return str(record["text"])
    messages: list[JsonObject] = []
    for field in MESSAGE_FIELDS:
        messages += record.get(field, ())
    return "\n".join(message["content"] for message in messages)


def _measure_texts(texts: Iterable[str], num_samples: int) -> tuple[list[str], list[int]]:
    """Returns the beginnings of the first texts, and the sizes in bytes of at most 100,000."""
    samples: list[str] = []
    sizes: list[int] = []
    for text in islice(texts, MAX_MEASURED_DOCUMENTS):
        if len(samples) < num_samples:
            samples.append(text[:MAX_SAMPLE_CHARACTERS])
        sizes.append(len(text.encode()))
    return samples, sizes


class _TextCounter:
    """Counts documents as they pass. The chunks of a long document count as one document."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self.samples: list[JsonObject] = []
        self.sizes: list[int] = []
        self.num_characters = 0
        self.num_lines = 0

    def count(self, stream: Iterable[Document]) -> Iterator[Document]:
        """Yields each document after it was counted."""
        for document in stream:
            if document.chunk_index == 0:
                self._add_document(document)
            self.sizes[-1] += len(document.text.encode())
            self.num_characters += len(document.text)
            self.num_lines += document.text.count("\n")
            yield document

    def _add_document(self, document: Document) -> None:
        self.sizes.append(0)
        if len(self.samples) < self.num_samples:
            text = document.text[:MAX_SAMPLE_CHARACTERS]
            self.samples.append({"name": document.name, "text": text})


def inspect_texts(
    path: Path,
    num_samples: int,
    tokenizer: Tokenizer | None,
) -> DataReport:
    """Inspects texts: counts, lengths and what could not be read.

    Args:
        path: a file or a folder.
        num_samples: documents to include.
        tokenizer: adds the number of tokens, the compression, and whether every text is restored
            by decoding.

    Raises:
        ValueError: there is no document that can be read.
    """
    problems: list[str] = []
    counter = _TextCounter(num_samples)
    stream = counter.count(documents.read([path], problems.append))
    stats = None
    if tokenizer is None:
        for _ in stream:
            pass
    else:
        stats = inspect_tokenizer.measure(tokenizer, stream)
    figures: JsonObject = {
        "documents": len(counter.sizes),
        "bytes": sum(counter.sizes),
        "characters": counter.num_characters,
        "lines": counter.num_lines,
    }
    if stats is not None:
        total_tokens = stats.total_tokens
        figures["tokens"] = total_tokens
        figures["bytes_per_token"] = round(sum(counter.sizes) / max(1, total_tokens), 3)
        figures["round_trip"] = not stats.altered
    figures["problems"] = len(problems)
    figures["first_problems"] = problems[:MAX_LISTED_PROBLEMS]
    lengths = {"document": make_histogram(counter.sizes)}
    panels = [text_plots.length_panel(counter.sizes, "documents", "bytes")]
    if stats is not None:
        panels.append(text_plots.rank_panel(stats.token_counts))
        panels.append(text_plots.compression_panel(stats.num_bytes, stats.num_tokens))
    return DataReport(
        kind="text",
        figures=figures,
        samples=counter.samples,
        lengths=lengths,
        panels=panels,
    )
