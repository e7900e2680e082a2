"""Byte-fallback BPE: tokens are made of characters, and other characters become their UTF-8 bytes.

As in SentencePiece, except that spaces stay spaces: a text that contains SentencePiece's space sign
is decoded unchanged too. Merges are those of `merges`, over characters; bytes are never merged.
Encoding loses nothing.

Invariant: `<` is always a chunk by itself, so no text can become the token of a byte, `<0x41>`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from slm_fn.text import patterns
from slm_fn.text.byte_vocab import BYTE_TOKENS
from slm_fn.text.tokenizer import Tokenizer
from slm_fn.text.training import alphabet, chunk_counts, merges
from slm_fn.text.training.bpe import BpeMethod
from slm_fn.text.training.progress import (
    ProgressCallback,
    ignore_progress,
    report_learning,
    report_reading,
)
from slm_fn.text.training.vocabulary import (
    SPECIAL_TOKENS,
    count_trainable_tokens,
    drop_special_merges,
)

BYTE_TOKEN_START = "<"
CHARACTER_COVERAGE = 0.9995
"""Share of a corpus' characters that get a token; the remaining, rare ones are encoded as bytes."""


class ByteFallbackOptions(NamedTuple):
    """How to train byte-fallback BPE.

    Args:
        min_frequency: pairs that occur less often are not merged.
        method: `basic` or `heap`; `fast` is `heap` here.
        pattern: the split: a name of `patterns.SPLIT_PATTERNS` or a regular expression.
        coverage: share of all characters that the alphabet covers if the vocabulary has room.
    """

    min_frequency: int = 2
    method: BpeMethod = "fast"
    pattern: str = "qwen2"
    coverage: float = CHARACTER_COVERAGE


def train(
    documents: Iterable[str],
    vocab_size: int,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    progress: ProgressCallback = ignore_progress,
    options: ByteFallbackOptions = ByteFallbackOptions(),
) -> Tokenizer:
    """Trains a byte-fallback BPE tokenizer.

    Ids are special tokens, 256 bytes, characters by code point, then merges.

    Args:
        documents: the texts, read once.
        vocab_size: number of all tokens together.
        special_tokens: names of the special tokens, in the order of their ids.
        progress: receives the characters read so far after each document, then the number of
            tokens learned after each merge.
        options: the split, the alphabet and the way of learning.

    Raises:
        ValueError: the vocabulary is too small for special tokens, bytes and one character, or the
            documents hold no text.

    Example:
        >>> tokenizer = train(["abab abab"], vocab_size=266)
        >>> tokenizer.decode(tokenizer.encode("abab, \\u2581<0x41>"))
        'abab, \\u2581<0x41>'
    """
    num_tokens = count_trainable_tokens(vocab_size, 257, special_tokens) - 256
    expression = patterns.resolve(options.pattern)
    reported = report_reading(documents, progress)
    split = patterns.make_splitter(expression, BYTE_TOKEN_START)
    counts = chunk_counts.count_chunks(reported, split)
    if not counts:
        raise ValueError("no text to train a tokenizer on: the corpus is empty")

    character_counts = alphabet.count_characters(counts)
    characters = alphabet.select_characters(character_counts, options.coverage, num_tokens)
    symbol_of = {character: symbol for symbol, character in enumerate(characters)}
    chunks = _symbol_chunks(counts, symbol_of)
    learn = merges.learn_basic if options.method == "basic" else merges.learn_heap
    report = report_learning(counts, progress)
    learned = learn(chunks, characters, num_tokens, options.min_frequency, report)
    kept = drop_special_merges(learned, special_tokens)

    merged = (left + right for left, right in kept)
    tokens = dict.fromkeys([*special_tokens, *BYTE_TOKENS, *characters, *merged])
    vocabulary = {token: i for i, token in enumerate(tokens)}
    model = models.BPE(vocabulary, kept, byte_fallback=True)
    return build_tokenizer(model, expression, special_tokens)


def _symbol_chunks(
    counts: Mapping[str, int], symbol_of: Mapping[str, int]
) -> Counter[tuple[int, ...]]:
    """Returns the chunks as symbols, cut at every character that has no symbol."""
    symbol_counts: Counter[tuple[int, ...]] = Counter()
    for chunk, count in counts.items():
        for run in _known_runs(chunk, symbol_of):
            symbol_counts[tuple(symbol_of[character] for character in run)] += count
    return symbol_counts


def _known_runs(chunk: str, symbol_of: Mapping[str, int]) -> Iterator[str]:
    begin = 0
    for end, character in enumerate([*chunk, ""]):
        if character not in symbol_of:
            if end > begin:
                yield chunk[begin:end]
            begin = end + 1


def make_pre_tokenizer(expression: str) -> pre_tokenizers.PreTokenizer:
    """Returns the split of text into chunks, with `<` always a chunk by itself."""
    isolate = pre_tokenizers.Split(BYTE_TOKEN_START, behavior="isolated")
    split = pre_tokenizers.Split(tokenizers.Regex(expression), behavior="isolated")
    return pre_tokenizers.Sequence([isolate, split])


def build_tokenizer(
    model: models.Model, expression: str, special_tokens: Sequence[str]
) -> Tokenizer:
    """Returns the tokenizer of a model that encodes unknown characters as bytes.

    Args:
        model: a BPE or unigram model with byte fallback.
        expression: regular expression that splits text into chunks.
        special_tokens: names of the special tokens.
    """
    hf = tokenizers.Tokenizer(model)
    hf.pre_tokenizer = make_pre_tokenizer(expression)
    hf.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    hf.add_special_tokens(list(special_tokens))
    return Tokenizer.from_json(hf.to_str())
