"""A tokenizer from documents: one config, four kinds.

Invariant: the same documents and config give the same tokenizer, whatever the number of cores.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from slm_fn.text import bpe, char, fallback, unigram
from slm_fn.text.bpe import SPECIALS, Method, Progress
from slm_fn.text.spelling import Kind
from slm_fn.text.tokenizer import Tokenizer


class TokenizerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to learn, and from how much text.

    `pattern` is a name (qwen2, gpt2, cl100k, llama3) or a regular expression; `specials` are control tokens beside the
    six of the chat template. `sample_bytes` and `max_lines` bound what is read of a large corpus (0: all of it); `seed`
    draws the sample. `coverage` belongs to byte-fallback, `alphabet` to char.
    """

    vocab_size: int = 4096
    min_frequency: int = 2
    kind: Kind = "bpe"
    method: Method = "fast"
    pattern: str = "qwen2"
    specials: tuple[str, ...] = ()
    sample_bytes: int = 1 << 29
    max_lines: int = 0
    seed: int = 0
    coverage: float = fallback.COVERAGE
    alphabet: Literal["ascii", "corpus"] = "corpus"


def train(config: TokenizerConfig, documents: Iterable[str], progress: Progress = bpe.unwatched) -> Tokenizer:
    """Learn a tokenizer of any kind.

    Args:
        documents: byte-level BPE learns fastest from what can be read twice, such as a list.
        progress: told the characters read so far, and the pieces learnt.

    Raises:
        ValueError: the vocabulary is too small, a control token is named twice, or there is no text.

    Example:
        >>> train(TokenizerConfig(kind="char"), ["abc"]).vocab_size
        11
    """
    specials = (*SPECIALS, *config.specials)
    size, least = config.vocab_size, config.min_frequency
    match config.kind:
        case "bpe":
            return bpe.train(documents, size, specials, least, progress, config.method, config.pattern)
        case "byte-fallback":
            how = (config.method, config.pattern, config.coverage)
            return fallback.train(documents, size, specials, least, progress, *how)
        case "unigram":
            return unigram.train(documents, size, specials, progress, config.pattern)
        case "char":
            return char.train(documents, config.alphabet, specials, size, progress)
