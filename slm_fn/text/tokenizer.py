"""One front for every tokenizer: text to ids and back, the bytes of a token, UTF-8 streams that split no character.

Invariant: text never becomes a control token, whatever it spells and however the tokenizer got here: fresh, loaded from
JSON, or unpickled in a spawned worker. `decode(encode(text)) == text` for all Unicode text.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from slm_fn.core import files
from slm_fn.text import engine
from slm_fn.text.engine import Engine


def _byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE writes for a byte: itself where visible, else one from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(0x100 + i): b for i, b in enumerate(hidden)}


BYTE_OF = _byte_alphabet()


class Flat(NamedTuple):
    """Many texts' ids end to end: text i is `ids[offsets[i]:offsets[i + 1]]`; ids are uint32."""

    ids: np.ndarray
    offsets: np.ndarray


class Tokenizer:
    """A byte-level tokenizer read from Hugging Face's `tokenizer.json`; immutable, picklable, compared by fingerprint.

    Example:
        >>> from slm_fn.text import bpe
        >>> tokenizer = bpe.train(["to be, or not to be"], vocab_size=270)
        >>> tokenizer.decode(tokenizer.encode("not <|end|> yet"))
        'not <|end|> yet'
        >>> tokenizer.special("<|end|>") in tokenizer.encode("<|end|>")
        False
    """

    def __init__(self, text: str, name: str = "tokenizer JSON") -> None:
        try:
            fields = json.loads(text)
            hf = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"{name} is not a tokenizer.json: {error}") from None
        decoder = (fields.get("decoder") or {}).get("type")
        if decoder != "ByteLevel":
            raise ValueError(
                f"{name} is not byte-level (its decoder is {decoder}); only byte-level tokenizers are read"
            )
        # Survives neither JSON nor pickle in the library, and every road into this class passes here.
        hf.encode_special_tokens = True
        hf.no_truncation()
        hf.no_padding()
        added = hf.get_added_tokens_decoder()
        self._hf = hf
        self._added = {i: b"" if token.special else token.content.encode() for i, token in added.items()}
        self._specials = {token.content: i for i, token in sorted(added.items()) if token.special}

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Read the text of a `tokenizer.json`.

        Raises:
            ValueError: it is no tokenizer, or not a byte-level one.
        """
        return cls(text)

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Read a `tokenizer.json`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no tokenizer, or not a byte-level one.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise FileNotFoundError(f"no tokenizer at {path}; make one with `slm tokenizer train`") from None
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not a tokenizer.json: its bytes are no UTF-8 text") from None
        return cls(text, str(path))

    def save(self, path: Path | str) -> None:
        """Write a `tokenizer.json`, atomically."""
        files.write(path, self.to_json())

    def to_json(self) -> str:
        """The text of its `tokenizer.json`, as the library writes it."""
        return self._hf.to_str(pretty=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer.from_json, (self.to_json(),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]})"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of its JSON with sorted keys and no spaces: equal exactly when the ids are."""
        canonical = json.dumps(json.loads(self._hf.to_str()), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id, control tokens included: the rows an embedding needs."""
        return 1 + max(self._hf.get_vocab(with_added_tokens=True).values())

    @property
    def specials(self) -> dict[str, int]:
        """The control tokens and their ids, in the order of ids."""
        return dict(self._specials)

    def special(self, name: str) -> int:
        """The id of a control token.

        Raises:
            ValueError: this tokenizer has no such control token; lists those it has.
        """
        try:
            return self._specials[name]
        except KeyError:
            have = ", ".join(self._specials) or "none"
            raise ValueError(f"the tokenizer has no control token {name} (it has: {have})") from None

    def encode(self, text: str) -> list[int]:
        """The ids of a text. What looks like a control token in it is encoded as the characters it is made of.

        Raises:
            ValueError: the text holds half a surrogate pair, which no UTF-8 can carry.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores.

        Raises:
            ValueError: a text holds half a surrogate pair.
        """
        for text in texts:
            text.encode()  # UnicodeEncodeError, a ValueError that names the place, before the library's bare TypeError
        return [encoding.ids for encoding in self._hf.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_flat(self, texts: Sequence[str]) -> Flat:
        """`encode` of many texts, end to end in one array: what packing writes. By the fastest engine that is exact.

        Raises:
            ValueError: a text holds half a surrogate pair.

        Example:
            >>> from slm_fn.text import bpe
            >>> flat = bpe.train(["hello hello"], 262).encode_flat(["he", "", "l"])
            >>> flat.ids.tolist(), flat.offsets.tolist()
            ([77, 74, 81], [0, 2, 2, 3])
        """
        data = [text.encode() for text in texts]
        if self.engine.backend is not None:
            rows = self.engine.backend.encode_batch(data).layout
            return Flat(np.asarray(rows.content.data), np.asarray(rows.offsets.data))
        ids = self.encode_batch(texts)
        offsets = np.cumsum([0, *map(len, ids)])
        return Flat(np.fromiter(itertools.chain.from_iterable(ids), np.uint32, int(offsets[-1])), offsets)

    @cached_property
    def engine(self) -> Engine:
        """What `encode_flat` encodes with, and why."""
        return engine.choose(self._hf)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; none for a control token.

        Raises:
            ValueError: no token has this id.
        """
        try:
            return self._bytes[token]
        except KeyError:
            raise ValueError(f"no token has id {token} (the vocabulary has {self.vocab_size})") from None

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        vocabulary = self._hf.get_vocab(with_added_tokens=False)
        return {i: bytes(map(BYTE_OF.__getitem__, text)) for text, i in vocabulary.items()} | self._added

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, control tokens left out; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: no token has one of these ids.
        """
        ids = [int(token) for token in ids]
        if not self._bytes.keys() >= set(ids):
            self.token_bytes(next(token for token in ids if token not in self._bytes))
        return b"".join(map(self._bytes.__getitem__, ids)).decode("utf-8", "replace")


class Utf8(NamedTuple):
    """A stream of bytes turned into text: what is held back is the beginning of a character whose end has not come."""

    pending: bytes = b""


def push(state: Utf8, data: bytes) -> tuple[Utf8, str]:
    """Take more bytes; return the whole characters that are complete now.

    All the pushed texts and the flushed one, joined, are what decoding all the bytes at once gives.

    Example:
        >>> state, text = push(Utf8(), "é".encode()[:1])
        >>> text, push(state, "é".encode()[1:])[1]
        ('', 'é')
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.setstate((state.pending, 0))
    text = decoder.decode(data)
    return Utf8(decoder.getstate()[0]), text


def flush(state: Utf8) -> str:
    """What the end of the stream makes of the bytes held back: U+FFFD, or nothing."""
    return state.pending.decode("utf-8", "replace")
