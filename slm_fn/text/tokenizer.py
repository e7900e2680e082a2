"""One class for every tokenizer: text to ids and back, token bytes, special tokens, fingerprint.

Invariant: text never becomes a special token unless the caller allows that token, whether the
tokenizer is new, loaded from JSON, or unpickled in a spawned worker. `decode(encode(text)) == text`
for all Unicode text, except for characters outside the alphabet of a character tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import tokenizers

from slm_fn.core import files
from slm_fn.text import byte_vocab, encoder
from slm_fn.text.byte_vocab import TokenizerKind
from slm_fn.text.encoder import EncoderBackend, FlatEncoding

AllowedSpecial = Literal["none", "all", "raise"] | Collection[str]

_REPLACEMENT_CHARACTER = "\ufffd".encode()
_ESCAPED_BYTE = re.compile("([\udc80-\udcff])")
"""A byte that is not UTF-8, as the error handler `surrogateescape` decodes it."""
_FIRST_ESCAPED_BYTE = 0xDC00


class Tokenizer:
    """A tokenizer of Hugging Face's `tokenizer.json`; immutable, picklable, equal by fingerprint.

    `kind` is one of the four kinds of `byte_vocab`.

    Args:
        text: the text of a `tokenizer.json`.
        name: what error messages call the text, such as its path.

    Raises:
        ValueError: the text is no tokenizer, or none of the four kinds, or plain text would become
            one of its special tokens.

    Example:
        >>> from slm_fn.text.training import bpe
        >>> tokenizer = bpe.train(["to be, or not to be"], vocab_size=270)
        >>> tokenizer.decode(tokenizer.encode("not <|end|> yet"))
        'not <|end|> yet'
        >>> tokenizer.special_id("<|end|>") in tokenizer.encode("<|end|>")
        False
    """

    def __init__(self, text: str, name: str = "tokenizer JSON") -> None:
        try:
            fields = json.loads(text)
            hf = tokenizers.Tokenizer.from_str(text)
            self.kind: TokenizerKind = byte_vocab.detect_kind(fields)
            # The library keeps this neither in JSON nor in pickles, so it is set here, where every
            # tokenizer is made.
            hf.encode_special_tokens = True
            reachable = _find_reachable_special_token(self.kind, hf)
        except Exception as error:  # the library raises bare Exceptions
            raise ValueError(f"{name} is not a tokenizer.json that can be used: {error}") from None
        if reachable is not None:
            raise ValueError(
                f"{name}: plain text would become the special token {reachable!r}; rename the token"
            )
        hf.no_truncation()
        hf.no_padding()
        self._hf = hf
        self._added_token_bytes: dict[int, bytes] = {}
        self._special_tokens: dict[str, int] = {}
        for token, added in sorted(hf.get_added_tokens_decoder().items()):
            is_unknown = added.content == byte_vocab.UNKNOWN_TOKEN
            if added.special:
                self._special_tokens[added.content] = token
                self._added_token_bytes[token] = b""
            else:
                self._added_token_bytes[token] = added.content.encode()
            if is_unknown:
                self._added_token_bytes[token] = _REPLACEMENT_CHARACTER

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Returns the tokenizer of the text of a `tokenizer.json`.

        Raises:
            ValueError: the text is no tokenizer, or none of the four kinds.
        """
        return cls(text)

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Reads a `tokenizer.json`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no tokenizer, or none of the four kinds.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no tokenizer at {path}; make one with `slm tokenizer train`"
            ) from None
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not a tokenizer.json: it is not UTF-8 text") from None
        return cls(text, str(path))

    def save(self, path: Path | str) -> None:
        """Writes a `tokenizer.json`, atomically."""
        files.write(path, self.to_json())

    def to_json(self) -> str:
        """Returns the text of the `tokenizer.json`, as the library writes it."""
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
        """SHA-256, in hex, of the JSON with sorted keys and no spaces: equal if the ids are."""
        canonical = json.dumps(
            json.loads(self._hf.to_str()), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id, special tokens included: the rows an embedding needs."""
        return 1 + max(self._hf.get_vocab(with_added_tokens=True).values())

    @property
    def special_tokens(self) -> dict[str, int]:
        """The special tokens with their ids, in the order of ids."""
        return dict(self._special_tokens)

    def special_id(self, name: str) -> int:
        """Returns the id of a special token.

        Raises:
            ValueError: the tokenizer has no such special token; lists the ones it has.
        """
        try:
            return self._special_tokens[name]
        except KeyError:
            existing = ", ".join(self._special_tokens) or "none"
            raise ValueError(
                f"the tokenizer has no special token {name} (it has: {existing})"
            ) from None

    @cached_property
    def pattern(self) -> str | None:
        """The regular expression that splits text into chunks; None for a character tokenizer."""
        if self.kind == "char":
            return None
        pre_tokenizer = json.loads(self._hf.to_str())["pre_tokenizer"] or {}
        expression = None
        for step in pre_tokenizer.get("pretokenizers", [pre_tokenizer]):
            if step.get("type") == "Split":
                expression = step["pattern"].get("Regex") or expression
        return expression

    @cached_property
    def dropout(self) -> float:
        """BPE dropout: the share of merges that encoding skips at random; usually 0."""
        return float(json.loads(self._hf.to_str())["model"].get("dropout") or 0)

    @cached_property
    def merges(self) -> list[tuple[bytes, bytes]]:
        """The merges in their order, as bytes; empty for unigram and character tokenizers."""
        merges = []
        for pair in json.loads(self._hf.to_str())["model"].get("merges", ()):
            left, right = pair.split(" ") if isinstance(pair, str) else pair
            left_bytes = byte_vocab.token_to_bytes(self.kind, left)
            right_bytes = byte_vocab.token_to_bytes(self.kind, right)
            merges.append((left_bytes, right_bytes))
        return merges

    def encode(self, text: str, allowed_special: AllowedSpecial = "none") -> list[int]:
        """Returns the ids of a text.

        Args:
            text: the text to encode.
            allowed_special: which names of special tokens in the text become those tokens. `none`:
                they are encoded as ordinary characters; `all`: each becomes its token; `raise`: one
                is an error; or a collection of names that become tokens, the others being text.
                Never allow any in text from a user or a document.

        Raises:
            ValueError: the text holds half a surrogate pair, which UTF-8 cannot represent; or it
                contains a special token under `raise`; or an allowed name does not exist.

        Example:
            >>> from slm_fn.text.training import bpe
            >>> tokenizer = bpe.train(["a"], 262)
            >>> tokenizer.encode("a<|end|>", allowed_special={"<|end|>"})
            [103, 5]
        """
        names = self._allowed_names(allowed_special)
        if not names:
            return self.encode_batch([text])[0]
        # The longest name first, because one special token may begin with another.
        by_length = sorted(names, key=len, reverse=True)
        alternatives = "|".join(re.escape(name) for name in by_length)
        sections = re.split(f"({alternatives})", text)  # text at even, names at odd indices
        if allowed_special == "raise" and len(sections) > 1:
            before, name = sections[:2]
            raise ValueError(f"the text spells the special token {name} at character {len(before)}")
        encoded = self.encode_batch(sections[::2])
        ids = encoded[0]
        for name, following in zip(sections[1::2], encoded[1:], strict=True):
            ids.append(self.special_id(name))
            ids += following
        return ids

    def _allowed_names(self, allowed_special: AllowedSpecial) -> Collection[str]:
        if allowed_special in ("all", "raise"):
            return self._special_tokens
        if allowed_special == "none":
            return ()
        return frozenset(allowed_special)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Returns the ids of any bytes: UTF-8 is encoded as text, other bytes as a token each.

        Raises:
            ValueError: a character tokenizer has no tokens for bytes that are not UTF-8.

        Example:
            >>> from slm_fn.text.training import bpe
            >>> tokenizer = bpe.train(["a"], 262)
            >>> tokenizer.decode_bytes(tokenizer.encode_bytes(b"a\\xff\\xc3"))
            b'a\\xff\\xc3'
        """
        sections = _ESCAPED_BYTE.split(data.decode("utf-8", "surrogateescape"))
        ids: list[int] = []
        for i, section in enumerate(sections):  # text at even, escaped bytes at odd indices
            if i % 2:
                ids.append(self._byte_id(ord(section) - _FIRST_ESCAPED_BYTE))
            elif section:
                ids += self.encode(section)
        return ids

    def _byte_id(self, byte: int) -> int:
        names = byte_vocab.byte_tokens(self.kind)
        if not names:
            raise ValueError(
                f"byte 0x{byte:02x} is not UTF-8, and this tokenizer has tokens of characters only"
            )
        return int(self._hf.token_to_id(names[byte]) or 0)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, as `encode`; uses all cores.

        Raises:
            ValueError: a text holds half a surrogate pair.
        """
        for text in texts:
            # Raises UnicodeEncodeError, a ValueError that gives the position in the text; the
            # library would raise a TypeError without one.
            text.encode()
        encodings = self._hf.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_flat(self, texts: Sequence[str]) -> FlatEncoding:
        """Returns the ids of many texts in one array, by the fastest exact backend.

        Raises:
            ValueError: a text holds half a surrogate pair.

        Example:
            >>> from slm_fn.text.training import bpe
            >>> flat = bpe.train(["hello hello"], 262).encode_flat(["he", "", "l"])
            >>> flat.ids.tolist(), flat.offsets.tolist()
            ([110, 107, 114], [0, 2, 2, 3])
        """
        return self.encoder_backend.encode([text.encode() for text in texts])

    @cached_property
    def encoder_backend(self) -> EncoderBackend:
        """What `encode_flat` encodes with, and why."""
        return encoder.choose_backend(self._hf, self.kind)

    def token_bytes(self, token: int) -> bytes:
        """Returns the bytes that a token represents; none for a special token.

        Raises:
            ValueError: no token has this id.
        """
        try:
            return self._bytes_by_id[token]
        except KeyError:
            raise self._unknown_id(token) from None

    def _unknown_id(self, token: int) -> ValueError:
        return ValueError(f"no token has id {token} (the vocabulary has {self.vocab_size})")

    @cached_property
    def _bytes_by_id(self) -> dict[int, bytes]:
        vocabulary = self._hf.get_vocab(with_added_tokens=False)
        bytes_by_id = {
            token: byte_vocab.token_to_bytes(self.kind, name)
            for name, token in vocabulary.items()
            if token not in self._added_token_bytes
        }
        return bytes_by_id | self._added_token_bytes

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Returns the bytes of ids, special tokens left out.

        Raises:
            ValueError: no token has one of these ids.
        """
        tokens = [int(token) for token in ids]
        bytes_by_id = self._bytes_by_id
        if not bytes_by_id.keys() >= set(tokens):
            raise self._unknown_id(next(token for token in tokens if token not in bytes_by_id))
        return b"".join(map(bytes_by_id.__getitem__, tokens))

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids, special tokens left out; bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: no token has one of these ids.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")


def _find_reachable_special_token(kind: TokenizerKind, hf: tokenizers.Tokenizer) -> str | None:
    """Returns the first special token that plain text would become, None if there is none."""
    for added in hf.get_added_tokens_decoder().values():
        if added.special and byte_vocab.is_produced_by_text(kind, hf, added.content):
            return str(added.content)
    return None
