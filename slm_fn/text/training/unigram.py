"""Unigram: subwords with probabilities, learned by EM and pruning; encoding picks the likeliest.

Hugging Face tokenizers trains it: seeds from a suffix array, EM, pruning by the loss of likelihood
and Viterbi encoding are all there, and the library is a dependency already (sentencepiece trains
three times as fast, but is one dependency more). Its trainer has no byte fallback; the bytes are
added afterwards, so every text can be decoded exactly.

Invariant: as with byte-fallback BPE, no text can become the token of a byte or a special token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import models, trainers

from slm_fn.text import patterns
from slm_fn.text.byte_vocab import BYTE_TOKENS
from slm_fn.text.tokenizer import Tokenizer
from slm_fn.text.training.byte_fallback import build_tokenizer, make_pre_tokenizer
from slm_fn.text.training.progress import ProgressCallback, ignore_progress, report_reading
from slm_fn.text.training.vocabulary import SPECIAL_TOKENS, count_trainable_tokens

UNREACHABLE_LOGPROB = -1e6
"""The log-probability of tokens that Viterbi must not choose: bytes and special tokens."""


def train(
    documents: Iterable[str],
    vocab_size: int,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    progress: ProgressCallback = ignore_progress,
    pattern: str = "qwen2",
    num_em_steps: int = 2,
    shrink_factor: float = 0.75,
) -> Tokenizer:
    """Trains a unigram tokenizer: subwords and their log-probabilities.

    Ids are special tokens, 256 bytes, then subwords by probability.

    Args:
        documents: the texts, read once.
        vocab_size: number of all tokens together.
        special_tokens: names of the special tokens, in the order of their ids.
        progress: receives the characters read so far after each document.
        pattern: the split: a name of `patterns.SPLIT_PATTERNS` or a regular expression.
        num_em_steps: steps of EM between two prunings.
        shrink_factor: the share of subwords that one pruning keeps, in (0, 1).

    Raises:
        ValueError: the vocabulary is too small for special tokens, bytes and one character, or the
            documents hold no text.

    Example:
        >>> tokenizer = train(["the cat and the dog and the cat"] * 9, vocab_size=290)
        >>> tokenizer.kind, tokenizer.decode(tokenizer.encode("the \\u2581<0x41> cat"))
        ('unigram', 'the \\u2581<0x41> cat')

    References: arXiv 1804.10959.
    """
    num_subwords = count_trainable_tokens(vocab_size, 257, special_tokens) - 256
    expression = patterns.resolve(pattern)
    hf = tokenizers.Tokenizer(models.Unigram())
    hf.pre_tokenizer = make_pre_tokenizer(expression)
    trainer = trainers.UnigramTrainer(
        vocab_size=num_subwords,
        show_progress=False,
        n_sub_iterations=num_em_steps,
        shrinking_factor=shrink_factor,
    )
    hf.train_from_iterator(report_reading(documents, progress), trainer)
    learned = [tuple(entry) for entry in json.loads(hf.to_str())["model"]["vocab"]]
    if not learned:
        raise ValueError("no text to train a tokenizer on: the corpus is empty")

    fixed = [(token, UNREACHABLE_LOGPROB) for token in (*special_tokens, *BYTE_TOKENS)]
    subwords = [entry for entry in learned[:num_subwords] if entry[0] not in special_tokens]
    # The library requires an unknown token although bytes leave nothing unknown; id 0 is a special
    # token, or a byte where there are no special tokens.
    model = models.Unigram([*fixed, *subwords], unk_id=0, byte_fallback=True)
    return build_tokenizer(model, expression, special_tokens)
