"""One front for every tokenizer: text to ids and back, the bytes of a token, control tokens, fingerprint.

Invariant: text never becomes a control token unless the caller allows that one, however the tokenizer got here: fresh,
loaded from JSON, or unpickled in a spawned worker. `decode(encode(text)) == text` for all Unicode text, save for
characters outside the alphabet of a character tokenizer.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import tokenizers

from slm_fn.core import files
from slm_fn.text import engine, spelling
from slm_fn.text.engine import Engine, Flat

AllowedSpecial = Literal["none", "all", "raise"] | Collection[str]


class Tokenizer:
    """A tokenizer read from Hugging Face's `tokenizer.json`; immutable, picklable, compared by fingerprint.

    `kind` is one of the four of `spelling`, `pattern` the expression that splits text (None for characters).

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
            self.kind = spelling.kind_of(fields)
            # Survives neither JSON nor pickle in the library, and every road into this class passes here.
            hf.encode_special_tokens = True
            controls = [token.content for token in hf.get_added_tokens_decoder().values() if token.special]
            spelt = next((control for control in controls if spelling.spells(self.kind, hf, control)), None)
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"{name} is not a tokenizer.json that can be used: {error}") from None
        if spelt is not None:
            raise ValueError(f"{name}: plain text would become the control token {spelt!r}; name it otherwise")
        hf.no_truncation()
        hf.no_padding()
        added = hf.get_added_tokens_decoder()
        self._hf = hf
        self._added = {i: b"" if token.special else token.content.encode() for i, token in added.items()}
        self._added |= {i: "\ufffd".encode() for i, token in added.items() if token.content == spelling.UNKNOWN}
        self._specials = {token.content: i for i, token in sorted(added.items()) if token.special}

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Read the text of a `tokenizer.json`.

        Raises:
            ValueError: it is no tokenizer, or none of the four kinds.
        """
        return cls(text)

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Read a `tokenizer.json`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no tokenizer, or none of the four kinds.
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

    @cached_property
    def pattern(self) -> str | None:
        """The regular expression that splits text into chunks, as its JSON says it."""
        step = json.loads(self._hf.to_str())["pre_tokenizer"] or {}
        found = [
            part["pattern"].get("Regex")
            for part in step.get("pretokenizers", [step])
            if part.get("type") == "Split" and self.kind != "char"
        ]
        return next((expression for expression in reversed(found) if expression), None)

    @cached_property
    def dropout(self) -> float:
        """The share of merges that encoding leaves out at random, which a file from elsewhere may ask for."""
        return float(json.loads(self._hf.to_str())["model"].get("dropout") or 0)

    @cached_property
    def merges(self) -> list[tuple[bytes, bytes]]:
        """The merges in their order, as bytes; none for unigram and characters."""
        model = json.loads(self._hf.to_str())["model"]
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges", ()))
        return [(spelling.spell(self.kind, left), spelling.spell(self.kind, right)) for left, right in pairs]

    def encode(self, text: str, allowed_special: AllowedSpecial = "none") -> list[int]:
        """The ids of a text.

        Args:
            allowed_special: which control tokens the text may spell. `none`: what looks like one is encoded as the
                characters it is made of; `all`: it is that token; `raise`: it is an error; or a collection of those
                that are allowed, the others being text. Never allow any in what a user or a document says.

        Raises:
            ValueError: the text holds half a surrogate pair, which no UTF-8 can carry; or it spells a control token
                under `raise`; or an allowed one is not known.

        Example:
            >>> from slm_fn.text import bpe
            >>> tokenizer = bpe.train(["a"], 262)
            >>> tokenizer.encode("a<|end|>", allowed_special={"<|end|>"})
            [103, 5]
        """
        everyone = allowed_special in ("all", "raise")
        names = self._specials if everyone else () if allowed_special == "none" else frozenset(allowed_special)
        if not names:
            return self.encode_batch([text])[0]
        # The longest first, since one control token may begin another; split puts what it found at odd places.
        pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
        parts = re.split(f"({pattern})", text)
        if allowed_special == "raise" and len(parts) > 1:
            raise ValueError(f"the text spells the control token {parts[1]} at character {len(parts[0])}")
        rows = self.encode_batch(parts[::2])
        rows[1:] = [[self.special(name), *row] for name, row in zip(parts[1::2], rows[1:], strict=True)]
        return list(itertools.chain.from_iterable(rows))

    def encode_bytes(self, data: bytes) -> list[int]:
        """The ids of any bytes: stretches of UTF-8 as text, every other byte as its own token.

        Raises:
            ValueError: a character tokenizer has no tokens for bytes that are no UTF-8.

        Example:
            >>> from slm_fn.text import bpe
            >>> tokenizer = bpe.train(["a"], 262)
            >>> tokenizer.decode_bytes(tokenizer.encode_bytes(b"a\\xff\\xc3"))
            b'a\\xff\\xc3'
        """
        pieces = spelling.byte_pieces(self.kind)
        out: list[int] = []
        for part in re.split("([\udc80-\udcff])", data.decode("utf-8", "surrogateescape")):
            if part and "\udc80" <= part[0] <= "\udcff":
                if not pieces:
                    raise ValueError(
                        f"byte 0x{ord(part) - 0xDC00:02x} is no UTF-8, and this tokenizer has only characters"
                    )
                out.append(int(self._hf.token_to_id(pieces[ord(part) - 0xDC00]) or 0))
            elif part:
                out += self.encode(part)
        return out

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
            ([110, 107, 114], [0, 2, 2, 3])
        """
        return self.engine.encode([text.encode() for text in texts])

    @cached_property
    def engine(self) -> Engine:
        """What `encode_flat` encodes with, and why."""
        return engine.choose(self._hf, self.kind)

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
        return {
            i: spelling.spell(self.kind, piece) for piece, i in vocabulary.items() if i not in self._added
        } | self._added

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids, control tokens left out.

        Raises:
            ValueError: no token has one of these ids.
        """
        ids = [int(token) for token in ids]
        if not self._bytes.keys() >= set(ids):
            self.token_bytes(next(token for token in ids if token not in self._bytes))
        return b"".join(map(self._bytes.__getitem__, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, control tokens left out; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: no token has one of these ids.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")
