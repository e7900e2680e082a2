"""How a vocabulary spells bytes: the four kinds of tokenizer, told apart by their `tokenizer.json`.

    bpe             byte-level: each byte is written as one printable character, merged from there
    byte-fallback   pieces are characters as they are; a character outside the vocabulary is its bytes, `<0x41>`
    unigram         the same spelling, chosen by probability instead of merges
    char            one character, one token; others are `<UNK>`

Invariant: a token's bytes depend on its own entry alone, so a stream of tokens can be decoded one by one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import tokenizers

Kind = Literal["bpe", "byte-fallback", "unigram", "char"]

UNKNOWN = "<UNK>"
BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


def _byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE writes for a byte: itself where visible, else one from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(0x100 + i): b for i, b in enumerate(hidden)}


BYTE_OF = _byte_alphabet()
CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}


def kind_of(fields: Mapping[str, Any]) -> Kind:
    """The kind of a parsed `tokenizer.json`.

    Raises:
        ValueError: none of the four.
    """
    model, decoder = fields.get("model") or {}, fields.get("decoder") or {}
    steps = [step.get("type") for step in decoder.get("decoders", [decoder])]
    if model.get("type") == "BPE" and steps == ["ByteLevel"]:
        return "bpe"
    if steps == ["ByteFallback", "Fuse"] and model.get("byte_fallback"):
        if model["type"] == "BPE":
            return "byte-fallback"
        if model["type"] == "Unigram":
            return "unigram"
    if model.get("type") == "WordLevel" and steps == ["Fuse"]:
        return "char"
    shown = ", ".join(str(step) for step in steps)
    raise ValueError(
        f"its model {model.get('type')} with the decoder {shown} is none of the kinds read here: byte-level BPE, "
        "BPE or unigram with byte fallback, characters"
    )


def byte_pieces(kind: Kind) -> tuple[str, ...]:
    """What stands for each single byte; nothing where characters are all there is."""
    if kind == "bpe":
        return tuple(CHARACTER_OF[byte] for byte in range(256))
    return BYTE_PIECES if kind != "char" else ()


def spells(kind: Kind, hf: tokenizers.Tokenizer, name: str) -> bool:
    """Whether text can become the entry of this name in the vocabulary, as it must not where that is a control token.

    What merges, or the likeliest pieces, make of a stretch within a text they make of it alone.
    """
    if kind == "char":
        return len(name) == 1
    if kind != "bpe" and name in BYTE_PIECES:
        return True
    if kind == "unigram":
        found = hf.encode(name, add_special_tokens=False).ids
    else:
        found = [token.id for token in hf.model.tokenize(name)]
    return hf.token_to_id(name) in found


def spell(kind: Kind, piece: str) -> bytes:
    """The bytes that an entry of the vocabulary stands for.

    Example:
        >>> spell("bpe", "\\u0120a"), spell("unigram", "<0x41>"), spell("char", "<0x41>")
        (b' a', b'A', b'<0x41>')
    """
    if kind == "bpe":
        return bytes(map(BYTE_OF.__getitem__, piece))
    if kind != "char" and _BYTE_PIECE.fullmatch(piece):
        return bytes([int(piece[3:5], 16)])
    return piece.encode()
