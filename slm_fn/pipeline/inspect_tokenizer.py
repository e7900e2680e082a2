"""Look into a tokenizer: what it is made of, and what it makes of a text.

Invariant: what is measured is what packing writes: the texts go through `encode_flat`, and come back or are named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slm_fn.data import formats, sources
from slm_fn.data.sources import Document, Problem
from slm_fn.pipeline import plot
from slm_fn.pipeline.plot import Panel
from slm_fn.text import patterns
from slm_fn.text.tokenizer import Tokenizer

TOGETHER = 64
"""Documents encoded at once; each is at most a piece of a million characters."""
SHOWN, MANY = 12, 8


class Measured(NamedTuple):
    """Texts through a tokenizer: occurrences of each token, bytes and tokens of documents, which came back altered."""

    counts: np.ndarray
    num_bytes: np.ndarray
    num_tokens: np.ndarray
    altered: list[str]

    @property
    def tokens(self) -> int:
        """All tokens of all documents."""
        return int(self.num_tokens.sum())


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a tokenizer is made of, as plain JSON values."""
    specials = tokenizer.specials
    sizes = {i: len(tokenizer.token_bytes(i)) for i in _tokens(tokenizer)}
    longest = sorted(sizes, key=lambda i: (-sizes[i], i))[:SHOWN]
    expression = tokenizer.pattern
    return {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "merges": len(tokenizer.merges),
        "specials": specials,
        "fingerprint": tokenizer.fingerprint,
        "pattern": None if expression is None else patterns.name(expression),
        "expression": expression,
        "engine": tokenizer.engine.name,
        "engine_reason": tokenizer.engine.reason,
        "longest_tokens": {i: spelt(tokenizer, i) for i in longest},
        "token_lengths": dict(sorted(Counter(sizes.values()).items())),
    }


def _tokens(tokenizer: Tokenizer) -> list[int]:
    """The ids that stand for text."""
    controls, found = set(tokenizer.specials.values()), []
    for i in range(tokenizer.vocab_size):
        if i not in controls:
            try:
                tokenizer.token_bytes(i)
            except ValueError:
                continue  # a hole in the numbering
            found.append(i)
    return found


def spelt(tokenizer: Tokenizer, token: int) -> str:
    """A token for the eye: its text with white space escaped, or its bytes; a control token by its name.

    Example:
        >>> from slm_fn.text import bpe
        >>> tokenizer = bpe.build([(b" ", b" "), (b"  ", b"  "), (b"    ", b"    ")], r"[\\s\\S]+")
        >>> spelt(tokenizer, 5), spelt(tokenizer, 6 + 0xFF), spelt(tokenizer, tokenizer.vocab_size - 1)
        ('<|end|>', "b'\\\\xff'", "' ' * 8")
    """
    names = {i: name for name, i in tokenizer.specials.items()}
    data = tokenizer.token_bytes(token)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return repr(data)
    if len(text) >= MANY and len(set(text)) == 1:
        return f"{text[0]!r} * {len(text)}"
    return names.get(token) or repr(text)


def texts(path: Path, problem: Problem | None = None) -> Iterator[Document]:
    """The documents of a corpus; a file of another kind than a corpus has is one text.

    Args:
        problem: is told what cannot be read, where the rest is to be measured all the same.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: no UTF-8.
    """
    if path.is_file() and formats.kind(str(path)) is None:
        try:
            return iter([Document(path.name, path.read_bytes().decode())])
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no UTF-8 text: {error}") from None
    return sources.read([path], problem)


def measure(tokenizer: Tokenizer, documents: Iterable[Document]) -> Measured:
    """Encode documents and decode them again, streaming; what does not come back as it went is named."""
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    num_bytes: list[int] = []
    num_tokens: list[int] = []
    altered: list[str] = []
    stream = iter(documents)
    while some := list(islice(stream, TOGETHER)):
        flat = tokenizer.encode_flat([document.text for document in some])
        counts += np.bincount(flat.ids, minlength=len(counts))
        for document, begin, end in zip(some, flat.offsets[:-1], flat.offsets[1:], strict=True):
            size = len(document.text.encode())
            if document.part and num_bytes:
                num_bytes[-1] += size
                num_tokens[-1] += int(end - begin)
            else:
                num_bytes.append(size)
                num_tokens.append(int(end - begin))
            if tokenizer.decode(flat.ids[begin:end].tolist()) != document.text:
                altered.append(document.name)
    return Measured(counts, np.array(num_bytes), np.array(num_tokens), altered)


def summary(tokenizer: Tokenizer, found: Measured) -> dict[str, Any]:
    """What was measured, as plain JSON values."""
    ranked = np.argsort(-found.counts, kind="stable")[:SHOWN]
    unused = [i for i in _tokens(tokenizer) if found.counts[i] == 0]
    return {
        "documents": len(found.num_bytes),
        "bytes": int(found.num_bytes.sum()),
        "tokens": found.tokens,
        "bytes_per_token": round(int(found.num_bytes.sum()) / max(1, found.tokens), 3),
        "round_trip": not found.altered,
        "altered": found.altered[:SHOWN],
        "most_frequent": {spelt(tokenizer, int(i)): int(found.counts[i]) for i in ranked if found.counts[i]},
        "unused": len(unused),
        "unused_share": round(len(unused) / max(1, tokenizer.vocab_size), 4),
        "longest_unused": [spelt(tokenizer, i) for i in sorted(unused, key=lambda i: -len(tokenizer.token_bytes(i)))][
            :SHOWN
        ],
    }


def panels(figures: dict[str, Any], found: Measured | None) -> list[Panel]:
    """The pictures: token lengths, and of texts the frequencies of tokens and the compression."""
    out = [plot.sizes(figures["token_lengths"], "tokens", "bytes")]
    if found is not None and found.tokens:
        out += [plot.ranks(found.counts), plot.compression(found.num_bytes, found.num_tokens)]
    return out
