"""Character tokenizers: one token per character, over ASCII or the characters of a corpus.

Invariant: `<PAD>` is 0 and `<UNK>` is 1; characters outside the alphabet decode to U+FFFD.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from slm_fn.text.byte_vocab import UNKNOWN_TOKEN
from slm_fn.text.tokenizer import Tokenizer
from slm_fn.text.training import alphabet, chunk_counts
from slm_fn.text.training.progress import ProgressCallback, ignore_progress, report_reading
from slm_fn.text.training.vocabulary import SPECIAL_TOKENS

PAD_TOKEN = "<PAD>"
_ANY_CHARACTER = r"[\s\S]"


def train(
    documents: Iterable[str] = (),
    source: Literal["ascii", "corpus"] = "corpus",
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    vocab_size: int | None = None,
    progress: ProgressCallback = ignore_progress,
) -> Tokenizer:
    """Returns the tokenizer of an alphabet.

    Ids are `<PAD>`, `<UNK>`, the characters by code point, then special tokens.

    Args:
        documents: the texts; not read for `ascii`.
        source: where the alphabet comes from. `ascii` is newline, tab and the 95 printable
            characters; `corpus` is every character of the documents, or the most frequent ones if
            `vocab_size` has no room for all.
        special_tokens: names of the special tokens besides `<PAD>` and `<UNK>`.
        vocab_size: upper bound on the number of tokens; None for no bound.
        progress: receives the characters read so far after each document.

    Raises:
        ValueError: the documents hold no text, or the vocabulary has no room for a character.

    Example:
        >>> tokenizer = train(source="ascii", special_tokens=())
        >>> tokenizer.vocab_size, tokenizer.encode("a\\n"), tokenizer.decode(tokenizer.encode("é!"))
        (99, [69, 3], '\ufffd!')
    """
    fixed_tokens = (PAD_TOKEN, UNKNOWN_TOKEN, *special_tokens)
    if source == "ascii":
        characters = list(alphabet.ASCII_CHARACTERS)
    else:
        reported = report_reading(documents, progress)
        characters = _select_from_corpus(reported, vocab_size, len(fixed_tokens))

    tokens = [PAD_TOKEN, UNKNOWN_TOKEN, *characters, *special_tokens]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    hf = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN_TOKEN))
    any_character = tokenizers.Regex(_ANY_CHARACTER)
    hf.pre_tokenizer = pre_tokenizers.Split(any_character, behavior="isolated")
    hf.decoder = decoders.Fuse()
    hf.add_special_tokens(list(fixed_tokens))
    return Tokenizer.from_json(hf.to_str())


def _select_from_corpus(
    documents: Iterable[str], vocab_size: int | None, num_fixed: int
) -> list[str]:
    counts = chunk_counts.count_chunks(documents, list)
    if not counts:
        raise ValueError("no text to take an alphabet from: the corpus is empty")
    max_characters = None if vocab_size is None else vocab_size - num_fixed
    if max_characters is not None and max_characters < 1:
        raise ValueError(
            f"vocab_size {vocab_size} is too small: the special tokens alone take {num_fixed}"
        )
    return alphabet.select_characters(counts, max_characters=max_characters)
