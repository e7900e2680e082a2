"""Byte-level BPE, learnt by three methods that give the same merges: the plain one, a heap, and rustbpe.

`fast` is rustbpe: it counts chunks on all cores for any split pattern, and its merges are those of `merges.basic`, ties
included (tested); on 64 MB of English it takes less than half the time of Hugging Face tokenizers, and less memory.
gigatoken trains as fast but knows GPT-2's split alone. rustbpe knows no least frequency: where the last merge is rarer
than asked, or the documents can be read only once and so not be looked at again, `heap` learns instead.

Invariant: the same documents, in any order, give the same vocabulary by every method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Literal

import rustbpe
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from slm_fn.text import merges, patterns, words
from slm_fn.text.spelling import CHARACTER_OF
from slm_fn.text.tokenizer import Tokenizer

Method = Literal["fast", "heap", "basic"]
Merge = tuple[bytes, bytes]
Progress = Callable[[int, int], None]
"""Is told the characters read and the pieces learnt."""


def unwatched(read: int, pieces: int) -> None:
    """Nobody is told."""


SPECIALS = ("<|endoftext|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
"""The reserved control tokens: ids 0 to 5 of every vocabulary trained here."""

BYTES = tuple(bytes([byte]) for byte in range(256))
DOCUMENTS_AT_ONCE = 512
"""Handed to rustbpe together. A document here is at most a piece of a million characters, so this bounds memory."""


def train(
    documents: Iterable[str],
    vocab_size: int,
    specials: Sequence[str] = SPECIALS,
    min_frequency: int = 2,
    progress: Progress = unwatched,
    method: Method = "fast",
    pattern: str = "qwen2",
) -> Tokenizer:
    """Learn merges from documents, the most frequent pair first; ties as `merges` states.

    Ids are control tokens, then the 256 bytes in order, then merges. A small corpus may hold fewer pairs worth merging
    than were asked for; `vocab_size` of the result tells the truth.

    Args:
        vocab_size: control tokens, 256 bytes and merges together.
        min_frequency: pairs seen less often are not merged.
        progress: told the characters read so far, after each document, and then the pieces learnt, after each.
        method: `basic` is quadratic, for reading and for small corpora; `heap` and `fast` are for work.
        pattern: the split: a name of `patterns.PATTERNS` or a regular expression.

    Raises:
        ValueError: the vocabulary has no room for bytes and control tokens, a control token is empty or named twice,
            the pattern is none, or there is no text in the documents.

    Example:
        >>> train(["ab ab ab ab"], vocab_size=264).vocab_size
        264
    """
    num_pieces = room(vocab_size, 256, specials)
    expression = patterns.resolve(pattern)
    if method == "fast" and iter(documents) is not documents:
        found = _rust(documents, num_pieces, expression, progress)
        made = build(found, expression, specials) if found is not None else None
        if made is not None and _occurs(made, made.vocab_size - 1, min_frequency, documents):
            return made
    counts = words.count(watched(documents, progress), patterns.split(expression))
    if not counts:
        raise ValueError("no text to train a tokenizer on: the corpus is empty")
    learn = merges.basic if method == "basic" else merges.heap
    chunks = {tuple(chunk.encode()): count for chunk, count in counts.items()}
    learnt = learn(chunks, BYTES, num_pieces, min_frequency, learning(counts, progress))
    return build(learnt, expression, specials)


def room(vocab_size: int, least: int, specials: Sequence[str]) -> int:
    """How many pieces a vocabulary has room for beside its control tokens.

    Raises:
        ValueError: fewer than `least`, or a control token is empty or named twice.
    """
    if vocab_size < least + len(specials):
        raise ValueError(
            f"vocab_size {vocab_size} is too small: {least} bytes and characters and {len(specials)} control tokens "
            f"take {least + len(specials)}"
        )
    if len(set(specials)) < len(specials) or "" in specials:
        raise ValueError(f"control tokens must be distinct and not empty, got {', '.join(map(repr, specials))}")
    return vocab_size - len(specials)


def watched(documents: Iterable[str], progress: Progress) -> Iterator[str]:
    """The documents, with the number of characters so far told after each."""
    read = 0
    for document in documents:
        yield document
        read += len(document)
        progress(read, 0)


def learning(counts: Mapping[str, int], progress: Progress) -> Callable[[int], None]:
    """What tells of pieces learnt when chunks have been counted."""
    read = sum(len(chunk) * count for chunk, count in counts.items())
    return lambda pieces: progress(read, pieces)


def build(learnt: Sequence[Merge], expression: str, specials: Sequence[str] = SPECIALS) -> Tokenizer:
    """The tokenizer of merges, in their order.

    Example:
        >>> build([(b"a", b"b")], patterns.PATTERNS["qwen2"]).encode("abc")
        [262, 105]
    """
    spelt = spared([(_characters(left), _characters(right)) for left, right in learnt], specials)
    pieces = dict.fromkeys([*specials, *map(_characters, BYTES), *(left + right for left, right in spelt)])
    hf = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, spelt))
    split = pre_tokenizers.Split(tokenizers.Regex(expression), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    hf.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    hf.decoder = decoders.ByteLevel()
    hf.add_special_tokens(list(specials))
    return Tokenizer.from_json(hf.to_str())


def spared(learnt: Sequence[tuple[str, str]], specials: Sequence[str]) -> list[tuple[str, str]]:
    """Merges without those that would spell a control token, and without what is built on one: it stays text.

    Example:
        >>> spared([("a", "b"), ("c", "ab"), ("cab", "d"), ("a", "d")], ["cab"])
        [('a', 'b'), ('a', 'd')]
    """
    kept, gone = [], set(specials)
    for left, right in learnt:
        if gone.isdisjoint((left, right, left + right)):
            kept.append((left, right))
        else:
            gone.add(left + right)
    return kept


def _characters(piece: bytes) -> str:
    return "".join(CHARACTER_OF[byte] for byte in piece)


def _rust(documents: Iterable[str], num_pieces: int, expression: str, progress: Progress) -> list[Merge] | None:
    """rustbpe's merges; None where what it tells does not say how each piece was made."""
    engine = rustbpe.Tokenizer()
    engine.train_from_iterator(
        watched(documents, progress), num_pieces, buffer_size=DOCUMENTS_AT_ONCE, pattern=expression
    )
    pieces = [bytes(piece) for piece, _ in sorted(engine.get_mergeable_ranks(), key=lambda ranked: ranked[1])]
    return from_ranks({piece: rank for rank, piece in enumerate(pieces)}) if len(pieces) == num_pieces else None


def from_ranks(ranks: dict[bytes, int]) -> list[Merge] | None:
    """The merges behind a table of ranks: each piece, spelt with what came before it, has two parts.

    None when one has not, or when two pieces are spelt alike.

    Example:
        >>> from_ranks({**{byte: i for i, byte in enumerate(BYTES)}, b"ab": 256, b"aba": 257})
        [(b'a', b'b'), (b'ab', b'a')]
    """
    learnt = []
    for piece, rank in ranks.items():
        if rank >= 256:
            parts = [bytes([byte]) for byte in piece]
            while len(parts) > 2:
                joined = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
                best = min(joined)
                if best >= rank:
                    return None
                at = joined.index(best)
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            learnt.append((parts[0], parts[1]))
    return learnt


def _occurs(tokenizer: Tokenizer, token: int, times: int, documents: Iterable[str]) -> bool:
    """Whether documents hold a token so often; looks no further than it must."""
    for document in documents:
        times -= int((tokenizer.encode_flat([document]).ids == token).sum())
        if times <= 0:
            return True
    return times <= 0
