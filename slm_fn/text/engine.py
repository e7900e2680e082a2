"""The encoder for whole files: the fastest one with the ids of Hugging Face tokenizers, and why it was taken.

gigatoken reads the same `tokenizer.json` and encodes some hundred MB/s where Hugging Face's library does five, with
wheels for Linux, macOS and Windows. It knows the splits qwen2, gpt2, cl100k and llama3 by their pattern and refuses
others. Control tokens are taken out before it sees the vocabulary: it would find them in text. Characters are looked up
in a table.

Invariant: the choice changes the speed alone; gigatoken is trusted after giving the same ids on a text of all kinds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from slm_fn.text.spelling import UNKNOWN, Kind

PROBE = (
    "It's 12345 o'clock; don't WE'LL I'D  two  spaces\t\ttabs \r\n\r\n lines\n\n\n  indented\n\n\u00a0\u3000wide\u2028"
    "caf\u00e9 e\u0301 \u0130\u017f \u0436\u0443\u043a \u4e2d\u6587\u5b57 \u0939\u093f\u0928\u094d\u0926\u0940 "
    "\u0661\u0662\u0663 \u00bd\u00b2\u2164 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001d7d9 \u02b0\u01c5 x\u0307 "
    "a_b-c(d)[e]{f}<|end|>!!!???...\n\x00\x1b\x7f\u0085\ufeff\ufffd  "
)
"""Scripts, digits, contractions, signs, joined emoji, every kind of white space and control character."""


RENEWED_AFTER = 1 << 29
"""Bytes of text after which gigatoken starts with an empty memory: half a GB of English costs it some 100 MB."""


class Flat(NamedTuple):
    """Many texts' ids end to end: text i is `ids[offsets[i]:offsets[i + 1]]`; ids are uint32."""

    ids: np.ndarray
    offsets: np.ndarray


class Engine(NamedTuple):
    """An encoder of many texts in UTF-8 and, in words, why it is this one; `slow` where others have a faster one."""

    name: str
    reason: str
    encode: Callable[[Sequence[bytes]], Flat]
    slow: bool = False


def choose(hf: tokenizers.Tokenizer, kind: Kind) -> Engine:
    """The fastest encoder with the ids of `hf`, which has to encode control tokens as text."""
    plain = _through(hf)
    if kind == "char":
        table = _table(hf.get_vocab(with_added_tokens=True))
        if table([PROBE.encode()]).ids.tolist() == plain([PROBE.encode()]).ids.tolist():
            return Engine("table", "one character, one id", table)
        return Engine("tokenizers", "a vocabulary of words, or one without <UNK>, is no table", plain, slow=True)
    if kind != "bpe":
        return Engine("tokenizers", f"only byte-level BPE has a faster exact encoder, this is {kind}", plain, slow=True)
    try:
        from gigatoken.gigatoken_rs import load_hf_json
    except ImportError:
        reason = "gigatoken is not installed here; pip install gigatoken encodes many times as fast"
        return Engine("tokenizers", reason, plain, slow=True)
    fields = json.loads(hf.to_str())
    fields["added_tokens"] = []
    data = json.dumps(fields)
    try:
        encode = _renewed(lambda: load_hf_json(data))
    except Exception as error:  # it raises what it likes: RuntimeError for a pattern, ValueError for a model
        reason = f"gigatoken does not take this tokenizer: {str(error).partition(chr(10))[0]}"
        return Engine("tokenizers", reason, plain, slow=True)
    try:
        same = encode([PROBE.encode()]).ids.tolist() == plain([PROBE.encode()]).ids.tolist()
    except Exception as error:  # without awkward, its own dependency, it gives plain lists
        reason = f"gigatoken does not work here: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return Engine("tokenizers", reason, plain, slow=True)
    if not same:
        reason = "gigatoken gives other ids than Hugging Face tokenizers for this one"
        return Engine("tokenizers", reason, plain, slow=True)
    return Engine("gigatoken", "the same ids as Hugging Face tokenizers, many times as fast", encode)


def _renewed(load: Callable[[], Any], most: int = RENEWED_AFTER) -> Callable[[Sequence[bytes]], Flat]:
    """gigatoken's encoder, loaded anew after so many bytes: it remembers every different chunk, and never forgets."""
    backend, room = load(), most

    def encode(texts: Sequence[bytes]) -> Flat:
        nonlocal backend, room
        if not texts:
            return Flat(np.zeros(0, np.uint32), np.zeros(1, np.int64))
        if room <= 0:
            backend, room = load(), most
        room -= sum(map(len, texts))
        rows = backend.encode_batch(list(texts)).layout
        return Flat(np.asarray(rows.content.data), np.asarray(rows.offsets.data))

    return encode


def _through(hf: tokenizers.Tokenizer) -> Callable[[Sequence[bytes]], Flat]:
    def encode(texts: Sequence[bytes]) -> Flat:
        rows = hf.encode_batch_fast([text.decode() for text in texts], add_special_tokens=False)
        ids = [np.asarray(row.ids, dtype=np.uint32) for row in rows]
        return Flat(np.concatenate([np.zeros(0, np.uint32), *ids]), np.cumsum([0, *map(len, ids)]))

    return encode


def _table(vocabulary: dict[str, int]) -> Callable[[Sequence[bytes]], Flat]:
    table = np.full(0x110000, vocabulary.get(UNKNOWN, 0), np.uint32)
    for character, token in vocabulary.items():
        if len(character) == 1:
            table[ord(character)] = token

    def encode(texts: Sequence[bytes]) -> Flat:
        codes = [np.frombuffer(text.decode().encode("utf-32-le"), "<u4") for text in texts]
        ids = table[np.concatenate([np.zeros(0, np.uint32), *codes])]
        return Flat(ids, np.cumsum([0, *map(len, codes)]))

    return encode
