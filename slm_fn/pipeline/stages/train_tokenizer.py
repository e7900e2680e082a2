"""Stage: text files to a tokenizer.

Invariant: the same files, in any order, and the same seed give the same tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from slm_fn.core import random
from slm_fn.data.io import documents as sources
from slm_fn.data.io import folders
from slm_fn.text.tokenizer import Tokenizer
from slm_fn.text.training import train as tokenizers
from slm_fn.text.training.progress import ProgressCallback, ignore_progress
from slm_fn.text.training.train import TokenizerConfig

COMPRESSED_SUFFIXES = (".gz", ".zst", ".parquet")
COMPRESSION_RATIO = 4
"""Estimated bytes of text per byte of a compressed file."""
KEY_RANGE = 1 << 56
"""`random.fold_in` gives integers below this."""


class TextSample(msgspec.Struct, frozen=True):
    """Texts of files, or a sample of them; every iteration gives the same texts.

    A document, or a part of a long one, is drawn by a hash of the seed and its name, so that one
    pass spreads the sample over the corpus. It ends when its bytes or lines are used up.

    Args:
        max_bytes: of the sample's text; 0 takes all.
        max_lines: of the sample's text; 0 takes all.
        problem: called with a line for each unreadable input; None makes it an error.
        column: the field of JSONL and parquet that holds the text.
    """

    paths: tuple[Path, ...]
    max_bytes: int = 0
    max_lines: int = 0
    seed: int = 0
    problem: Callable[[str], None] | None = None
    column: str = "text"

    def __iter__(self) -> Iterator[str]:
        share = self._share()
        bytes_left = self.max_bytes or float("inf")
        lines_left = self.max_lines or float("inf")
        for document in sources.read(self.paths, self.problem, column=self.column):
            if share < 1:
                key = random.fold_in(self.seed, f"{document.name}#{document.chunk_index}")
                if key >= share * KEY_RANGE:
                    continue
            if bytes_left <= 0 or lines_left <= 0:
                return
            bytes_left -= len(document.text.encode())
            lines_left -= document.text.count("\n") + 1
            yield document.text

    def _share(self) -> float:
        """The share of documents to draw so that the sample has about `max_bytes`."""
        total = estimate(self.paths)
        if self.max_bytes and total > self.max_bytes:
            return self.max_bytes / total
        return 1.0


def estimate(paths: Iterable[Path]) -> int:
    """Estimated bytes of text in files and folders, from the files' sizes."""
    files: set[Path] = set()
    for path in paths:
        # Problems are reported by the reader.
        files.update(folders.list_files(path, lambda line: None))
    total = 0
    for file in files:
        ratio = COMPRESSION_RATIO if file.suffix in COMPRESSED_SUFFIXES else 1
        total += file.stat().st_size * ratio
    return total


def train_tokenizer(
    config: TokenizerConfig,
    documents: Iterable[str],
    out: Path | str,
    progress: ProgressCallback = ignore_progress,
) -> Tokenizer:
    """Train a tokenizer on texts and save it as `tokenizer.json`.

    Raises:
        ValueError: the vocabulary is too small for the bytes and special tokens, or there is no
            text.
    """
    tokenizer = tokenizers.train(config, documents, progress)
    tokenizer.save(out)
    return tokenizer


def train_from_files(
    config: TokenizerConfig,
    inputs: Iterable[Path],
    out: Path | str,
    problem: Callable[[str], None] | None = None,
    progress: ProgressCallback = ignore_progress,
    column: str = "text",
) -> Tokenizer:
    """`train_tokenizer` on files and folders, or on the sample of them that the config describes.

    Args:
        problem: called once for each unreadable input; None makes it an error.
        column: the field of JSONL and parquet that holds the text.

    Raises:
        ValueError: as `train_tokenizer`; or `out` is a folder or one of the inputs.
    """
    out = Path(out)
    paths = tuple(Path(path) for path in inputs)
    if out.is_dir():
        raise ValueError(f"{out} is a folder; name the file to write, say {out / 'tokenizer.json'}")
    if out.resolve() in [path.resolve() for path in paths]:
        raise ValueError(f"{out} is one of the inputs and would be overwritten; name another file")
    report = None if problem is None else _once(problem)
    sample = TextSample(paths, config.sample_bytes, config.max_lines, config.seed, report, column)
    return train_tokenizer(config, sample, out, progress)


def _once(report: Callable[[str], None]) -> Callable[[str], None]:
    """Report each line once: a corpus is read several times."""
    reported: set[str] = set()

    def report_once(line: str) -> None:
        if line not in reported:
            reported.add(line)
            report(line)

    return report_once
