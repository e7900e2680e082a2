"""The encoder for whole files: gigatoken where it gives the same ids, Hugging Face tokenizers elsewhere.

gigatoken reads the same `tokenizer.json` and encodes some hundred MB/s where Hugging Face's library does five, with
wheels for Linux, macOS and Windows. It knows the splits qwen2, gpt2, cl100k and llama3 by their pattern and refuses
others. Control tokens are taken out before it sees the vocabulary: it would find them in text.

Invariant: the choice changes the speed alone; before an engine is trusted, its ids are compared on a text of all kinds.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import tokenizers

PROBE = (
    "It's 12345 o'clock; don't WE'LL  two  spaces\t\ttabs \r\n\r\n lines\n\n\n  indented\n\u00a0\u3000wide\u2028"
    "caf\u00e9 e\u0301 \u0130\u017f \u0436\u0443\u043a \u4e2d\u6587\u5b57 \u0939\u093f\u0928\u094d\u0926\u0940 \u0661\u0662\u0663 \u00bd\u00b2 \U0001f468\u200d\U0001f469\u200d\U0001f467 "
    "a_b-c(d)[e]{f}<|end|>!!!???...\x00\x1b\x7f\ufeff\ufffd  "
)
"""Scripts, digits, contractions, signs, joined emoji, every kind of white space and control character."""


class Engine(NamedTuple):
    """`backend` is gigatoken's encoder, or None for Hugging Face's; `reason` says why, in words for a person."""

    name: str
    reason: str
    backend: Any = None


def choose(hf: tokenizers.Tokenizer) -> Engine:
    """The fastest encoder with the ids of `hf`, which has to encode control tokens as text."""
    try:
        from gigatoken.gigatoken_rs import load_hf_json
    except ImportError:
        return Engine("tokenizers", "gigatoken is not installed here; pip install gigatoken encodes many times as fast")
    fields = json.loads(hf.to_str())
    fields["added_tokens"] = []
    try:
        backend = load_hf_json(json.dumps(fields))
    except Exception as error:  # it raises what it likes: RuntimeError for a pattern, ValueError for a model
        return Engine("tokenizers", f"gigatoken does not take this tokenizer: {error}")
    expected = hf.encode(PROBE, add_special_tokens=False).ids
    if backend.encode_batch_list([PROBE.encode()]) != [expected]:
        return Engine("tokenizers", "gigatoken gives other ids than Hugging Face tokenizers for this one")
    return Engine("gigatoken", "the same ids as Hugging Face tokenizers", backend)
