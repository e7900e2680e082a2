"""Backends that encode many texts at once: the fastest one with the ids of Hugging Face tokenizers.

gigatoken reads the same `tokenizer.json` and encodes some hundred MB/s, Hugging Face's library
five; it has wheels for Linux, macOS and Windows. It recognizes the splits qwen2, gpt2, cl100k and
llama3 by their patterns and rejects others. It would encode special tokens that occur in text, so
they are removed from the vocabulary that it is given. Characters are looked up in a table.

Invariant: the backend affects speed only; gigatoken is used only if it gives the same ids on a
probe text with all kinds of characters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from slm_fn.text.byte_vocab import UNKNOWN_TOKEN, TokenizerKind

PROBE_TEXT = (
    "It's 12345 o'clock; don't WE'LL I'D  two  spaces\t\ttabs \r\n\r\n lines\n\n\n  indented\n\n"
    "\u00a0\u3000wide\u2028"
    "caf\u00e9 e\u0301 \u0130\u017f \u0436\u0443\u043a \u4e2d\u6587\u5b57 "
    "\u0939\u093f\u0928\u094d\u0926\u0940 "
    "\u0661\u0662\u0663 \u00bd\u00b2\u2164 \U0001f468\u200d\U0001f469\u200d\U0001f467 "
    "\U0001d7d9 \u02b0\u01c5 x\u0307 "
    "a_b-c(d)[e]{f}<|end|>!!!???...\n\x00\x1b\x7f\u0085\ufeff\ufffd  "
)
"""Scripts, digits, contractions, signs, joined emoji, all white space and control characters."""

RELOAD_AFTER_BYTES = 1 << 29
"""Bytes of text after which gigatoken is loaded anew: 0.5 GB of English costs it some 100 MB."""

NUM_CODE_POINTS = 0x110000


class FlatEncoding(NamedTuple):
    """The ids of many texts in one array: text i is `ids[offsets[i]:offsets[i + 1]]`.

    `ids` are uint32; `offsets` has one entry more than there are texts.
    """

    ids: np.ndarray
    offsets: np.ndarray


EncodeBatch = Callable[[Sequence[bytes]], FlatEncoding]
"""Encodes many texts given in UTF-8."""


class EncoderBackend(NamedTuple):
    """A function that encodes many texts, with its name and why it was chosen.

    `is_slow` if other tokenizers have a faster backend.
    """

    name: str
    reason: str
    encode: EncodeBatch
    is_slow: bool = False


def choose_backend(hf: tokenizers.Tokenizer, kind: TokenizerKind) -> EncoderBackend:
    """Returns the fastest backend that gives the ids of `hf`.

    Args:
        hf: the tokenizer; it must encode the names of special tokens as text.
        kind: the kind of the tokenizer.
    """
    encode_with_hf = _hf_encoder(hf)
    if kind == "char":
        encode_by_table = _table_encoder(hf.get_vocab(with_added_tokens=True))
        if _gives_same_ids(encode_by_table, encode_with_hf):
            return EncoderBackend("table", "one character, one id", encode_by_table)
        reason = "a vocabulary of words, or one without <UNK>, cannot be a table of characters"
    elif kind == "bpe":
        encode_with_gigatoken, reason = _try_gigatoken(hf, encode_with_hf)
        if encode_with_gigatoken is not None:
            return EncoderBackend("gigatoken", reason, encode_with_gigatoken)
    else:
        reason = f"only byte-level BPE has a faster exact encoder, this is {kind}"
    return EncoderBackend("tokenizers", reason, encode_with_hf, is_slow=True)


def _gives_same_ids(encode: EncodeBatch, reference: EncodeBatch) -> bool:
    probe = [PROBE_TEXT.encode()]
    return bool(encode(probe).ids.tolist() == reference(probe).ids.tolist())


def _try_gigatoken(
    hf: tokenizers.Tokenizer, reference: EncodeBatch
) -> tuple[EncodeBatch | None, str]:
    """Returns gigatoken's encoder, or None if it cannot be used, and the reason in words."""
    try:
        from gigatoken.gigatoken_rs import load_hf_json
    except ImportError:
        return None, "gigatoken is not installed; pip install gigatoken encodes many times as fast"
    fields = json.loads(hf.to_str())
    fields["added_tokens"] = []
    tokenizer_json = json.dumps(fields)

    def load() -> Any:
        return load_hf_json(tokenizer_json)

    try:
        encode = ReloadingEncoder(load)
    except Exception as error:  # RuntimeError for a pattern, ValueError for a model, and others
        return None, f"gigatoken does not support this tokenizer: {_first_line(error)}"
    try:
        has_same_ids = _gives_same_ids(encode, reference)
    except Exception as error:  # without awkward, its own dependency, it returns plain lists
        return None, f"gigatoken does not work: {type(error).__name__}: {_first_line(error)}"
    if not has_same_ids:
        return None, "gigatoken gives other ids than Hugging Face tokenizers for this tokenizer"
    return encode, "the same ids as Hugging Face tokenizers, many times as fast"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


class ReloadingEncoder:
    """gigatoken's encoder, loaded anew after a number of bytes.

    gigatoken caches every distinct chunk and never evicts one; loading it anew bounds the memory.

    Args:
        load: returns a new gigatoken tokenizer.
        max_bytes: bytes of text to encode before loading anew.
    """

    def __init__(self, load: Callable[[], Any], max_bytes: int = RELOAD_AFTER_BYTES) -> None:
        self._load = load
        self._max_bytes = max_bytes
        self._gigatoken = load()
        self._bytes_left = max_bytes

    def __call__(self, texts: Sequence[bytes]) -> FlatEncoding:
        if not texts:
            return FlatEncoding(np.zeros(0, np.uint32), np.zeros(1, np.int64))
        if self._bytes_left <= 0:
            self._gigatoken = self._load()
            self._bytes_left = self._max_bytes
        self._bytes_left -= sum(map(len, texts))
        layout = self._gigatoken.encode_batch(list(texts)).layout
        return FlatEncoding(np.asarray(layout.content.data), np.asarray(layout.offsets.data))


def _hf_encoder(hf: tokenizers.Tokenizer) -> EncodeBatch:
    def encode(texts: Sequence[bytes]) -> FlatEncoding:
        decoded = [text.decode() for text in texts]
        encodings = hf.encode_batch_fast(decoded, add_special_tokens=False)
        ids = [np.asarray(encoding.ids, dtype=np.uint32) for encoding in encodings]
        return _concatenate(ids)

    return encode


def _table_encoder(vocabulary: dict[str, int]) -> EncodeBatch:
    unknown_id = vocabulary.get(UNKNOWN_TOKEN, 0)
    table = np.full(NUM_CODE_POINTS, unknown_id, np.uint32)
    for character, token in vocabulary.items():
        if len(character) == 1:
            table[ord(character)] = token

    def encode(texts: Sequence[bytes]) -> FlatEncoding:
        utf32 = [text.decode().encode("utf-32-le") for text in texts]
        code_points = _concatenate([np.frombuffer(data, "<u4") for data in utf32])
        return FlatEncoding(table[code_points.ids], code_points.offsets)

    return encode


def _concatenate(arrays: Sequence[np.ndarray]) -> FlatEncoding:
    flat = np.concatenate([np.zeros(0, np.uint32), *arrays])
    return FlatEncoding(flat, np.cumsum([0, *map(len, arrays)]))
