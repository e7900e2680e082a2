"""Unigram: a probability for every piece, learnt by EM and pruned; a text is the likeliest pieces that spell it.

Hugging Face tokenizers train it: seeds from a suffix array, EM, pruning by the loss of likelihood, Viterbi in encoding
are all there, and the library is here anyway (sentencepiece trains three times as fast, and is one dependency more).
Its trainer has no byte fallback; the bytes are put in afterwards, so every text comes back.

Invariant: as with every fallback, no text can spell the token of a byte or a control token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from slm_fn.text import patterns
from slm_fn.text.bpe import SPECIALS, Progress, room, unwatched, watched
from slm_fn.text.fallback import OPENING, build
from slm_fn.text.spelling import BYTE_PIECES
from slm_fn.text.tokenizer import Tokenizer

NEVER = -1e6
"""The log-probability of what Viterbi must not choose: bytes and control tokens."""


def train(
    documents: Iterable[str],
    vocab_size: int,
    specials: Sequence[str] = SPECIALS,
    progress: Progress = unwatched,
    pattern: str = "qwen2",
    iterations: int = 2,
    shrink: float = 0.75,
) -> Tokenizer:
    """Learn pieces and their log-probabilities. Ids are control tokens, 256 bytes, then pieces by probability.

    Args:
        iterations: steps of EM between two prunings.
        shrink: the share of pieces that a pruning keeps.

    Raises:
        ValueError: no room for control tokens, bytes and a character, or no text.

    Example:
        >>> made = train(["the cat and the dog and the cat"] * 9, vocab_size=290)
        >>> made.kind, made.decode(made.encode("the \\u2581<0x41> cat"))
        ('unigram', 'the \\u2581<0x41> cat')

    References: arXiv 1804.10959.
    """
    num_pieces = room(vocab_size, 257, specials) - 256
    expression = patterns.resolve(pattern)
    hf = tokenizers.Tokenizer(models.Unigram())
    alone = pre_tokenizers.Split(OPENING, behavior="isolated")
    split = pre_tokenizers.Split(tokenizers.Regex(expression), behavior="isolated")
    hf.pre_tokenizer = pre_tokenizers.Sequence([alone, split])
    trainer = trainers.UnigramTrainer(
        vocab_size=num_pieces, show_progress=False, n_sub_iterations=iterations, shrinking_factor=shrink
    )
    hf.train_from_iterator(watched(documents, progress), trainer)
    learnt = [tuple(entry) for entry in json.loads(hf.to_str())["model"]["vocab"]]
    if not learnt:
        raise ValueError("no text to train a tokenizer on: the corpus is empty")
    fixed = [(piece, NEVER) for piece in (*specials, *BYTE_PIECES)]
    vocabulary = [*fixed, *(entry for entry in learnt[:num_pieces] if entry[0] not in specials)]
    # The library wants to know an unknown token though bytes leave none; without control tokens a byte stands in.
    return build(models.Unigram(vocabulary, unk_id=0, byte_fallback=True), expression, specials)
