"""Trains a tokenizer of any of the four kinds from one config.

Invariant: the same documents and config give the same tokenizer, for any number of cores.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from slm_fn.text.byte_vocab import TokenizerKind
from slm_fn.text.tokenizer import Tokenizer
from slm_fn.text.training import bpe, byte_fallback, char, unigram
from slm_fn.text.training.bpe import BpeMethod
from slm_fn.text.training.byte_fallback import ByteFallbackOptions
from slm_fn.text.training.progress import ProgressCallback, ignore_progress
from slm_fn.text.training.vocabulary import SPECIAL_TOKENS


class TokenizerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to train, and on how much text.

    Args:
        vocab_size: number of tokens, special tokens included; an upper bound for `char`.
        min_frequency: BPE does not merge pairs that occur less often.
        kind: byte-level BPE, byte-fallback BPE, unigram or characters.
        method: how BPE learns its merges.
        pattern: the split: a name (qwen2, gpt2, cl100k, llama3) or a regular expression.
        specials: special tokens besides the six of the chat template.
        sample_bytes: bytes read of a large corpus, 0 for all.
        max_lines: lines read of a large corpus, 0 for all.
        seed: seed of the sample.
        coverage: share of characters that byte-fallback gives a token.
        alphabet: where `char` takes its characters from.
    """

    vocab_size: int = 4096
    min_frequency: int = 2
    kind: TokenizerKind = "bpe"
    method: BpeMethod = "fast"
    pattern: str = "qwen2"
    specials: tuple[str, ...] = ()
    sample_bytes: int = 1 << 29
    max_lines: int = 0
    seed: int = 0
    coverage: float = byte_fallback.CHARACTER_COVERAGE
    alphabet: Literal["ascii", "corpus"] = "corpus"


def train(
    config: TokenizerConfig,
    documents: Iterable[str],
    progress: ProgressCallback = ignore_progress,
) -> Tokenizer:
    """Trains a tokenizer of the kind that the config names.

    Args:
        config: the settings; `sample_bytes`, `max_lines` and `seed` are the caller's to apply.
        documents: the texts; byte-level BPE is fastest if they can be read twice, such as a list.
        progress: receives the characters read so far, then the number of tokens learned.

    Raises:
        ValueError: the vocabulary is too small, a special token is repeated, or there is no text.

    Example:
        >>> train(TokenizerConfig(kind="char"), ["abc"]).vocab_size
        11
    """
    special_tokens = (*SPECIAL_TOKENS, *config.specials)
    vocab_size = config.vocab_size
    match config.kind:
        case "bpe":
            return bpe.train(
                documents,
                vocab_size,
                special_tokens,
                config.min_frequency,
                progress,
                config.method,
                config.pattern,
            )
        case "byte-fallback":
            options = ByteFallbackOptions(
                config.min_frequency, config.method, config.pattern, config.coverage
            )
            return byte_fallback.train(documents, vocab_size, special_tokens, progress, options)
        case "unigram":
            return unigram.train(documents, vocab_size, special_tokens, progress, config.pattern)
        case "char":
            return char.train(documents, config.alphabet, special_tokens, vocab_size, progress)
