"""Byte-level BPE, trained by three methods that learn the same merges: basic, heap, and rustbpe.

`fast` is rustbpe: it counts chunks on all cores for any split pattern, and its merges are those of
`merges.learn_basic`, ties included (tested). On 64 MB of English it takes less than half the time
of Hugging Face tokenizers, and less memory. gigatoken trains as fast but supports GPT-2's split
only. rustbpe has no minimum frequency: when its last merge is rarer than requested, or the
documents can be read only once and so cannot be checked, `heap` is used instead.

Invariant: the same documents, in any order, give the same vocabulary by every method.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

import rustbpe
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from slm_fn.text import patterns
from slm_fn.text.byte_vocab import BYTE_TO_UNICODE
from slm_fn.text.tokenizer import Tokenizer
from slm_fn.text.training import chunk_counts, merges
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

BpeMethod = Literal["fast", "heap", "basic"]
Merge = tuple[bytes, bytes]

SINGLE_BYTES = tuple(bytes([byte]) for byte in range(256))
RUSTBPE_BUFFER_DOCUMENTS = 512
"""Documents given to rustbpe at once. One has at most a million characters, which bounds memory."""


def train(
    documents: Iterable[str],
    vocab_size: int,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    min_frequency: int = 2,
    progress: ProgressCallback = ignore_progress,
    method: BpeMethod = "fast",
    pattern: str = "qwen2",
) -> Tokenizer:
    """Trains a byte-level BPE tokenizer: the most frequent pair of tokens is merged first.

    Ids are special tokens, then the 256 bytes in order, then merges. Ties are broken as `merges`
    states. A small corpus may hold fewer pairs to merge than requested; the `vocab_size` of the
    result is the actual size.

    Args:
        documents: the texts; `fast` needs them to be readable twice, such as a list.
        vocab_size: number of special tokens, 256 bytes and merges together.
        special_tokens: names of the special tokens, in the order of their ids.
        min_frequency: pairs that occur less often are not merged.
        progress: receives the characters read so far after each document, then the number of
            tokens learned after each merge.
        method: `basic` is quadratic, for reading and small corpora; `heap` and `fast` are for use.
        pattern: the split: a name of `patterns.SPLIT_PATTERNS` or a regular expression.

    Raises:
        ValueError: the vocabulary is too small for the bytes and special tokens, a special token is
            empty or repeated, the pattern is invalid, or the documents hold no text.

    Example:
        >>> train(["ab ab ab ab"], vocab_size=264).vocab_size
        264
    """
    num_tokens = count_trainable_tokens(vocab_size, 256, special_tokens)
    expression = patterns.resolve(pattern)
    is_rereadable = iter(documents) is not documents
    if method == "fast" and is_rereadable:
        learned = _learn_with_rustbpe(documents, num_tokens, expression, progress)
        if learned is not None:
            tokenizer = build_tokenizer(learned, expression, special_tokens)
            if _occurs(tokenizer, tokenizer.vocab_size - 1, min_frequency, documents):
                return tokenizer

    reported = report_reading(documents, progress)
    counts = chunk_counts.count_chunks(reported, patterns.make_splitter(expression))
    if not counts:
        raise ValueError("no text to train a tokenizer on: the corpus is empty")
    byte_chunks = {tuple(chunk.encode()): count for chunk, count in counts.items()}
    learn = merges.learn_basic if method == "basic" else merges.learn_heap
    report = report_learning(counts, progress)
    learned = learn(byte_chunks, SINGLE_BYTES, num_tokens, min_frequency, report)
    return build_tokenizer(learned, expression, special_tokens)


def build_tokenizer(
    learned: Sequence[Merge], expression: str, special_tokens: Sequence[str] = SPECIAL_TOKENS
) -> Tokenizer:
    """Returns the byte-level tokenizer that has these merges, in their order.

    Args:
        learned: pairs of tokens as bytes.
        expression: regular expression that splits text into chunks.
        special_tokens: names of the special tokens, in the order of their ids.

    Example:
        >>> build_tokenizer([(b"a", b"b")], patterns.SPLIT_PATTERNS["qwen2"]).encode("abc")
        [262, 105]
    """
    named = [(_byte_level_name(left), _byte_level_name(right)) for left, right in learned]
    kept = drop_special_merges(named, special_tokens)
    byte_names = map(_byte_level_name, SINGLE_BYTES)
    merged_names = (left + right for left, right in kept)
    names = dict.fromkeys([*special_tokens, *byte_names, *merged_names])
    vocabulary = {name: token for token, name in enumerate(names)}

    hf = tokenizers.Tokenizer(models.BPE(vocabulary, kept))
    split = pre_tokenizers.Split(tokenizers.Regex(expression), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    hf.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    hf.decoder = decoders.ByteLevel()
    hf.add_special_tokens(list(special_tokens))
    return Tokenizer.from_json(hf.to_str())


def _byte_level_name(token: bytes) -> str:
    """Returns a token as byte-level BPE writes it: one printable character per byte."""
    return "".join(BYTE_TO_UNICODE[byte] for byte in token)


def _learn_with_rustbpe(
    documents: Iterable[str], num_tokens: int, expression: str, progress: ProgressCallback
) -> list[Merge] | None:
    """Returns rustbpe's merges; None if there are too few or its ranks do not determine them."""
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(
        report_reading(documents, progress),
        num_tokens,
        buffer_size=RUSTBPE_BUFFER_DOCUMENTS,
        pattern=expression,
    )

    def by_rank(entry: tuple[bytes, int]) -> int:
        _, rank = entry
        return rank

    tokens = [bytes(token) for token, _ in sorted(trainer.get_mergeable_ranks(), key=by_rank)]
    if len(tokens) != num_tokens:
        return None
    return merges_from_ranks({token: rank for rank, token in enumerate(tokens)})


def merges_from_ranks(ranks: dict[bytes, int]) -> list[Merge] | None:
    """Returns the merges behind tiktoken-style ranks, or None if the ranks do not determine them.

    Every token of more than one byte, encoded with the tokens of lower rank, must give exactly two.

    Args:
        ranks: every token with its rank; the 256 single bytes have the ranks 0 to 255.

    Example:
        >>> single = {byte: rank for rank, byte in enumerate(SINGLE_BYTES)}
        >>> merges_from_ranks({**single, b"ab": 256, b"aba": 257})
        [(b'a', b'b'), (b'ab', b'a')]
    """
    learned: list[Merge] = []
    for token, rank in ranks.items():
        if rank < 256:
            continue
        merge = _split_in_two(token, rank, ranks)
        if merge is None:
            return None
        learned.append(merge)
    return learned


def _split_in_two(token: bytes, rank: int, ranks: dict[bytes, int]) -> Merge | None:
    """Returns the two tokens of lower rank that a token is merged from, None if there are not."""
    subwords = [bytes([byte]) for byte in token]
    while len(subwords) > 2:
        pair_ranks = [ranks.get(left + right, rank) for left, right in pairwise(subwords)]
        lowest = min(pair_ranks)
        if lowest >= rank:
            return None
        i = pair_ranks.index(lowest)
        subwords[i : i + 2] = [subwords[i] + subwords[i + 1]]
    return subwords[0], subwords[1]


def _occurs(tokenizer: Tokenizer, token: int, min_count: int, documents: Iterable[str]) -> bool:
    """Returns whether a token occurs `min_count` times; reads no further than needed."""
    num_missing = min_count
    for document in documents:
        ids = tokenizer.encode_flat([document]).ids
        num_missing -= int((ids == token).sum())
        if num_missing <= 0:
            return True
    return num_missing <= 0
