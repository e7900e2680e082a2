"""Inspect a tokenizer: its vocabulary and settings, and statistics of texts that it encodes.

Invariant: texts are encoded by `encode_flat`, as packing does; a text that changes is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slm_fn.data.io import documents as sources
from slm_fn.data.io import formats
from slm_fn.data.io.documents import Document
from slm_fn.data.io.problems import OnProblem
from slm_fn.pipeline.reports import text_plots
from slm_fn.pipeline.reports.text_plots import Panel
from slm_fn.text import patterns
from slm_fn.text.tokenizer import Tokenizer

BATCH_SIZE = 64
"""Documents that are encoded in one call; each has at most a million characters."""
MAX_LISTED = 12
MIN_REPEATED = 8
"""From this length on a run of one character is written as a repetition: `' ' * 8`."""


class EncodingStats(NamedTuple):
    """Statistics of documents that a tokenizer encoded and decoded.

    Attributes:
        token_counts: occurrences by token id.
        num_bytes: bytes of each document.
        num_tokens: tokens of each document.
        altered: names of the documents whose decoded text differs from the original.
    """

    token_counts: np.ndarray
    num_bytes: np.ndarray
    num_tokens: np.ndarray
    altered: list[str]

    @property
    def total_tokens(self) -> int:
        """The number of tokens of all documents."""
        return int(self.num_tokens.sum())


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the properties of a tokenizer as plain JSON values."""
    sizes = {i: len(tokenizer.token_bytes(i)) for i in _text_token_ids(tokenizer)}
    longest = sorted(sizes, key=lambda i: (-sizes[i], i))[:MAX_LISTED]
    expression = tokenizer.pattern
    return {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "merges": len(tokenizer.merges),
        "specials": tokenizer.special_tokens,
        "fingerprint": tokenizer.fingerprint,
        "pattern": None if expression is None else patterns.pattern_name(expression),
        "expression": expression,
        "engine": tokenizer.encoder_backend.name,
        "engine_reason": tokenizer.encoder_backend.reason,
        "longest_tokens": {i: format_token(tokenizer, i) for i in longest},
        "token_lengths": dict(sorted(Counter(sizes.values()).items())),
    }


def _text_token_ids(tokenizer: Tokenizer) -> list[int]:
    """Returns the ids of the tokens that are not special tokens."""
    special_ids = set(tokenizer.special_tokens.values())
    ids = []
    for i in range(tokenizer.vocab_size):
        if i in special_ids:
            continue
        try:
            tokenizer.token_bytes(i)
        except ValueError:
            continue  # this id is not assigned to a token
        ids.append(i)
    return ids


def format_token(tokenizer: Tokenizer, token: int) -> str:
    """Returns a readable form of a token.

    Text is quoted with its white space escaped, an incomplete character is shown as bytes, and a
    special token by its name.

    Example:
        >>> from slm_fn.text.training import bpe
        >>> merges = [(b" ", b" "), (b"  ", b"  "), (b"    ", b"    ")]
        >>> tokenizer = bpe.build_tokenizer(merges, r"[\\s\\S]+")
        >>> format_token(tokenizer, 5), format_token(tokenizer, 6 + 0xFF)
        ('<|end|>', "b'\\\\xff'")
        >>> format_token(tokenizer, tokenizer.vocab_size - 1)
        "' ' * 8"
    """
    special_names = {i: name for name, i in tokenizer.special_tokens.items()}
    data = tokenizer.token_bytes(token)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return repr(data)
    if len(text) >= MIN_REPEATED and len(set(text)) == 1:
        return f"{text[0]!r} * {len(text)}"
    return special_names.get(token) or repr(text)


def read_texts(path: Path, on_problem: OnProblem | None = None) -> Iterator[Document]:
    """Returns the documents of a corpus; a file of another format is read as one document.

    Args:
        path: a file or a folder.
        on_problem: is called with each input that cannot be read, and reading continues. Without it
            such an input is an error.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: a file is not UTF-8 text.
    """
    is_single_text = path.is_file() and formats.detect_format(str(path)) is None
    if not is_single_text:
        return sources.read([path], on_problem)
    try:
        return iter([Document(path.name, path.read_bytes().decode())])
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None


def measure(tokenizer: Tokenizer, documents: Iterable[Document]) -> EncodingStats:
    """Encodes and decodes documents as a stream, and counts bytes, tokens and altered texts.

    The chunks of a long document (`Document.chunk_index`) are counted as one document.
    """
    token_counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    num_bytes: list[int] = []
    num_tokens: list[int] = []
    altered: list[str] = []
    stream = iter(documents)
    while batch := list(islice(stream, BATCH_SIZE)):
        encoded = tokenizer.encode_flat([document.text for document in batch])
        token_counts += np.bincount(encoded.ids, minlength=len(token_counts))
        starts, ends = encoded.offsets[:-1], encoded.offsets[1:]
        for document, start, end in zip(batch, starts, ends, strict=True):
            is_continued = document.chunk_index and num_bytes
            if not is_continued:
                num_bytes.append(0)
                num_tokens.append(0)
            num_bytes[-1] += len(document.text.encode())
            num_tokens[-1] += int(end - start)
            if tokenizer.decode(encoded.ids[start:end].tolist()) != document.text:
                altered.append(document.name)
    return EncodingStats(token_counts, np.array(num_bytes), np.array(num_tokens), altered)


def summarize(tokenizer: Tokenizer, stats: EncodingStats) -> dict[str, Any]:
    """Returns the statistics of encoded documents as plain JSON values."""
    counts = stats.token_counts
    total_bytes = int(stats.num_bytes.sum())
    most_frequent = [i for i in np.argsort(-counts, kind="stable")[:MAX_LISTED] if counts[i]]
    unused = [i for i in _text_token_ids(tokenizer) if counts[i] == 0]
    longest_unused = sorted(unused, key=lambda i: -len(tokenizer.token_bytes(i)))[:MAX_LISTED]
    return {
        "documents": len(stats.num_bytes),
        "bytes": total_bytes,
        "tokens": stats.total_tokens,
        "bytes_per_token": round(total_bytes / max(1, stats.total_tokens), 3),
        "round_trip": not stats.altered,
        "altered": stats.altered[:MAX_LISTED],
        "most_frequent": {format_token(tokenizer, int(i)): int(counts[i]) for i in most_frequent},
        "unused": len(unused),
        "unused_share": round(len(unused) / max(1, tokenizer.vocab_size), 4),
        "longest_unused": [format_token(tokenizer, i) for i in longest_unused],
    }


def make_panels(description: dict[str, Any], stats: EncodingStats | None) -> list[Panel]:
    """Returns the plots of a tokenizer.

    Args:
        description: what `describe` returned; gives the plot of token lengths.
        stats: what `measure` returned; adds the plots of token frequencies and of compression.
    """
    panels = [text_plots.size_panel(description["token_lengths"], "tokens", "bytes")]
    if stats is not None and stats.total_tokens:
        panels.append(text_plots.rank_panel(stats.token_counts))
        panels.append(text_plots.compression_panel(stats.num_bytes, stats.num_tokens))
    return panels
