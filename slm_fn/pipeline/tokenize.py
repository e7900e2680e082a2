"""Stage: text files to a tokenizer.

Invariant: the same files, in any order named, and the same seed give the same tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from slm_fn.core import random
from slm_fn.data import sources
from slm_fn.text import train as texts
from slm_fn.text.bpe import Progress, unwatched
from slm_fn.text.tokenizer import Tokenizer
from slm_fn.text.train import TokenizerConfig

UNPACKED = 4
"""How many bytes of text a compressed byte is taken for, where the size of a corpus is estimated."""
PRECISION = 1 << 56


class Sample(msgspec.Struct, frozen=True):
    """Texts of files, or a sample of them; reading it again gives the same texts.

    A document, or a part of a long one, is taken by a hash of the seed and its name, so that the sample is spread over
    the corpus and found in one pass; there it ends when its bytes or lines are full.
    """

    paths: tuple[Path, ...]
    max_bytes: int = 0
    max_lines: int = 0
    seed: int = 0
    problem: Callable[[str], None] | None = None
    column: str = "text"

    def __iter__(self) -> Iterator[str]:
        total = estimate(self.paths)
        share = self.max_bytes / total if self.max_bytes and total > self.max_bytes else 1.0
        room, lines = self.max_bytes or float("inf"), self.max_lines or float("inf")
        for document in sources.read(self.paths, self.problem, column=self.column):
            if share < 1 and random.fold_in(self.seed, f"{document.name}#{document.part}") >= share * PRECISION:
                continue
            if room <= 0 or lines <= 0:
                return
            room -= len(document.text.encode())
            lines -= document.text.count("\n") + 1
            yield document.text


def estimate(paths: Iterable[Path]) -> int:
    """Bytes of text in files and folders, by their sizes: compressed ones count `UNPACKED` times."""
    found = {file for path in paths for file in sources.files_of(path, lambda line: None)}  # told by the reader
    return sum(file.stat().st_size * (UNPACKED if file.suffix in (".gz", ".zst", ".parquet") else 1) for file in found)


def train_tokenizer(
    config: TokenizerConfig, documents: Iterable[str], out: Path | str, progress: Progress = unwatched
) -> Tokenizer:
    """Train a tokenizer on texts and save it as `tokenizer.json`.

    Raises:
        ValueError: the vocabulary is too small for the bytes and control tokens, or there is no text.
    """
    tokenizer = texts.train(config, documents, progress)
    tokenizer.save(out)
    return tokenizer


def train_from_files(
    config: TokenizerConfig,
    inputs: Iterable[Path],
    out: Path | str,
    problem: Callable[[str], None] | None = None,
    progress: Progress = unwatched,
    column: str = "text",
) -> Tokenizer:
    """The same from files and folders, or from the sample of them that the config asks for.

    Args:
        problem: told each thing that cannot be read, once; without it, that is an error.
        column: the field of JSONL and parquet that holds the text.
    """
    out, inputs = Path(out), tuple(map(Path, inputs))
    if out.is_dir():
        raise ValueError(f"{out} is a folder; name the file to write, say {out / 'tokenizer.json'}")
    if out.resolve() in [path.resolve() for path in inputs]:
        raise ValueError(f"{out} is the text to learn from, and would be written over; name another file")
    told: set[str] = set()

    def once(line: str) -> None:
        if problem is not None and line not in told:
            told.add(line)
            problem(line)

    tell = once if problem else None
    sample = Sample(inputs, config.sample_bytes, config.max_lines, config.seed, tell, column)
    return train_tokenizer(config, sample, out, progress)
