"""Stage: text files to a tokenizer.

Invariant: the same files, in any order named, give the same tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from slm_fn.config import TokenizerConfig
from slm_fn.data import sources
from slm_fn.text import bpe
from slm_fn.text.tokenizer import Tokenizer


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str], out: Path | str) -> Tokenizer:
    """Train a byte-level BPE on texts and save it as `tokenizer.json`.

    Raises:
        ValueError: the vocabulary is too small for the bytes and control tokens.
    """
    tokenizer = bpe.train(texts, config.vocab_size, min_frequency=config.min_frequency)
    tokenizer.save(out)
    return tokenizer


def train_from_files(config: TokenizerConfig, inputs: Iterable[Path], out: Path | str) -> Tokenizer:
    """The same from files and folders of text, Markdown or JSONL."""
    return train_tokenizer(config, (document.text for document in sources.read(inputs)), out)
