"""Byte-level BPE with Qwen-2's split, trained by Hugging Face tokenizers and saved as `tokenizer.json`.

The library trains and reads it because its format is the one that every neighbour reads (transformers, llama.cpp,
mlx-lm, gigatoken), with this very split, so that every export keeps its ids.

Invariant: the same documents in the same order give the same vocabulary, and all 256 bytes are in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from slm_fn.text.tokenizer import Tokenizer

SPECIALS = ("<|endoftext|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
"""The reserved control tokens: ids 0 to 5 of every vocabulary trained here."""

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Words with their leading space, digits one by one, runs of signs, runs of white space: merges never cross these."""


def train(
    documents: Iterable[str],
    vocab_size: int,
    specials: Sequence[str] = SPECIALS,
    min_frequency: int = 2,
    progress: Callable[[int], None] | None = None,
) -> Tokenizer:
    """Learn merges from documents, the most frequent pair first.

    A small corpus may hold fewer pairs worth merging than were asked for; `vocab_size` of the result tells the truth.

    Args:
        vocab_size: control tokens, 256 bytes and merges together.
        min_frequency: pairs seen less often are not merged.
        progress: told the number of characters read so far, after each document.

    Raises:
        ValueError: the vocabulary has no room for bytes and control tokens, a control token is empty or named twice,
            or there is no text in the documents.

    Example:
        >>> train(["ab ab ab ab"], vocab_size=264).vocab_size
        264
    """
    least = 256 + len(specials)
    if vocab_size < least:
        raise ValueError(
            f"vocab_size {vocab_size} is too small: 256 bytes and {len(specials)} control tokens take {least}"
        )
    if len(set(specials)) < len(specials) or "" in specials:
        raise ValueError(f"control tokens must be distinct and not empty, got {', '.join(map(repr, specials))}")

    read = 0

    def counted() -> Iterator[str]:
        nonlocal read
        for document in documents:
            read += len(document)
            yield document
            if progress is not None:
                progress(read)

    split = pre_tokenizers.Split(tokenizers.Regex(QWEN2), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    hf = tokenizers.Tokenizer(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    hf.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    hf.train_from_iterator(counted(), trainer)
    if read == 0:
        raise ValueError("no text to train a tokenizer on: the corpus is empty")
    return Tokenizer.from_json(hf.to_str())
