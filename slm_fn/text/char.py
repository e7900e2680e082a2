"""Character tokenizers: one character, one token, over ASCII or over the alphabet of a corpus.

Invariant: `<PAD>` is 0 and `<UNK>` is 1; a text within the alphabet comes back, other characters become U+FFFD.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from slm_fn.text import alphabet, words
from slm_fn.text.bpe import SPECIALS, Progress, unwatched, watched
from slm_fn.text.spelling import UNKNOWN
from slm_fn.text.tokenizer import Tokenizer

PADDING = "<PAD>"
ANY = r"[\s\S]"


def train(
    documents: Iterable[str] = (),
    policy: Literal["ascii", "corpus"] = "corpus",
    specials: Sequence[str] = SPECIALS,
    vocab_size: int | None = None,
    progress: Progress = unwatched,
) -> Tokenizer:
    """The tokenizer of an alphabet: `<PAD>`, `<UNK>`, the characters by code point, then control tokens.

    Args:
        policy: `ascii` is newline, tab and the 95 printable characters, whatever the documents hold; `corpus` is every
            character that the documents hold, or the most frequent ones where `vocab_size` has room for no more.

    Raises:
        ValueError: no text to take an alphabet from, or no room for one.

    Example:
        >>> made = train(policy="ascii", specials=())
        >>> made.vocab_size, made.encode("a\\n"), made.decode(made.encode("é!"))
        (99, [69, 3], '\ufffd!')
    """
    fixed = (PADDING, UNKNOWN, *specials)
    if policy == "ascii":
        characters = list(alphabet.ASCII)
    else:
        found = words.count(watched(documents, progress), list)
        most = None if vocab_size is None else vocab_size - len(fixed)
        if not found or (most is not None and most < 1):
            raise ValueError(
                "no text to take an alphabet from: the corpus is empty"
                if not found
                else f"vocab_size {vocab_size} is too small: the control tokens alone take {len(fixed)}"
            )
        characters = alphabet.choose(found, most=most)
    pieces = [PADDING, UNKNOWN, *characters, *specials]
    hf = tokenizers.Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=UNKNOWN))
    hf.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(ANY), behavior="isolated")
    hf.decoder = decoders.Fuse()
    hf.add_special_tokens(list(fixed))
    return Tokenizer.from_json(hf.to_str())
