"""Byte-fallback BPE: pieces are made of characters, and a character without a token is its UTF-8 bytes. Lossless.

In the manner of SentencePiece, but spaces stay spaces: a text that holds the sign SentencePiece writes for them comes
back unchanged too. Merges are those of `merges`, over characters; bytes are never merged.

Invariant: the sign `<` is always a chunk by itself, so no text can spell the token of a byte, `<0x41>`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from slm_fn.text import alphabet, merges, patterns, words
from slm_fn.text.bpe import SPECIALS, Method, Progress, learning, room, spared, unwatched, watched
from slm_fn.text.spelling import BYTE_PIECES
from slm_fn.text.tokenizer import Tokenizer

OPENING = "<"
COVERAGE = 0.9995
"""Share of a corpus' characters that get a token; the others, rare ones, are written in bytes."""


def train(
    documents: Iterable[str],
    vocab_size: int,
    specials: Sequence[str] = SPECIALS,
    min_frequency: int = 2,
    progress: Progress = unwatched,
    method: Method = "fast",
    pattern: str = "qwen2",
    coverage: float = COVERAGE,
) -> Tokenizer:
    """Learn an alphabet and merges. Ids are control tokens, 256 bytes, characters by code point, then merges.

    Args:
        method: `basic`, or `heap`, which `fast` means too here.
        coverage: share of all characters that the alphabet has to make up, if the vocabulary has room.

    Raises:
        ValueError: no room for control tokens, bytes and a character, or no text.

    Example:
        >>> made = train(["abab abab"], vocab_size=266)
        >>> made.decode(made.encode("abab, \\u2581<0x41>"))
        'abab, \\u2581<0x41>'
    """
    num_pieces = room(vocab_size, 257, specials) - 256
    expression = patterns.resolve(pattern)
    counts = words.count(watched(documents, progress), patterns.split(expression, OPENING))
    if not counts:
        raise ValueError("no text to train a tokenizer on: the corpus is empty")
    characters = alphabet.choose(alphabet.frequencies(counts), coverage, num_pieces)
    symbols = {character: i for i, character in enumerate(characters)}
    learn = merges.basic if method == "basic" else merges.heap
    learnt = spared(
        learn(_spelt(counts, symbols), characters, num_pieces, min_frequency, learning(counts, progress)), specials
    )

    pieces = dict.fromkeys([*specials, *BYTE_PIECES, *characters, *(left + right for left, right in learnt)])
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, learnt, byte_fallback=True)
    return build(model, expression, specials)


def _spelt(counts: Mapping[str, int], symbols: Mapping[str, int]) -> Counter[tuple[int, ...]]:
    """Chunks as symbols, cut wherever a character has none."""
    found: Counter[tuple[int, ...]] = Counter()
    for chunk, count in counts.items():
        for stretch in _stretches(chunk, symbols):
            found[tuple(map(symbols.__getitem__, stretch))] += count
    return found


def _stretches(chunk: str, symbols: Mapping[str, int]) -> Iterator[str]:
    begin = 0
    for end, character in enumerate([*chunk, ""]):
        if character not in symbols:
            if end > begin:
                yield chunk[begin:end]
            begin = end + 1


def build(model: models.Model, expression: str, specials: Sequence[str]) -> Tokenizer:
    """The tokenizer around a model whose unknown characters are bytes."""
    hf = tokenizers.Tokenizer(model)
    alone = pre_tokenizers.Split(OPENING, behavior="isolated")
    split = pre_tokenizers.Split(tokenizers.Regex(expression), behavior="isolated")
    hf.pre_tokenizer = pre_tokenizers.Sequence([alone, split])
    hf.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    hf.add_special_tokens(list(specials))
    return Tokenizer.from_json(hf.to_str())
