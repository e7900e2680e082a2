"""How the tokens of a vocabulary represent bytes, for the four kinds of tokenizer.

    bpe             byte-level: every byte is one printable character, and merges join these
    byte-fallback   BPE over characters; a character outside the vocabulary is its bytes, `<0x41>`
    unigram         the same representation; the likeliest tokens are chosen instead of merging
    char            one token per character; characters outside the vocabulary are `<UNK>`

Invariant: a token's bytes depend on its own entry alone, so ids can be decoded one by one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import tokenizers

TokenizerKind = Literal["bpe", "byte-fallback", "unigram", "char"]

UNKNOWN_TOKEN = "<UNK>"
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""The tokens of the 256 bytes in vocabularies with byte fallback."""
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


def _unicode_to_byte() -> dict[str, int]:
    """Returns the byte of each character that byte-level BPE uses (GPT-2's table).

    A visible Latin-1 character stands for its own byte, the others for U+0100 and following.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    invisible = [byte for byte in range(256) if byte not in visible]
    table = {chr(byte): byte for byte in visible}
    for i, byte in enumerate(invisible):
        table[chr(0x100 + i)] = byte
    return table


UNICODE_TO_BYTE = _unicode_to_byte()
BYTE_TO_UNICODE = {byte: character for character, byte in UNICODE_TO_BYTE.items()}
_BYTE_LEVEL_TOKENS = tuple(BYTE_TO_UNICODE[byte] for byte in range(256))


def detect_kind(fields: Mapping[str, Any]) -> TokenizerKind:
    """Returns the kind of a parsed `tokenizer.json`.

    Args:
        fields: the JSON object of the file.

    Raises:
        ValueError: it is none of the four kinds.
    """
    model = fields.get("model") or {}
    decoder = fields.get("decoder") or {}
    decoders = [step.get("type") for step in decoder.get("decoders", [decoder])]
    match (model.get("type"), decoders):
        case ("BPE", ["ByteLevel"]):
            return "bpe"
        case ("BPE", ["ByteFallback", "Fuse"]) if model.get("byte_fallback"):
            return "byte-fallback"
        case ("Unigram", ["ByteFallback", "Fuse"]) if model.get("byte_fallback"):
            return "unigram"
        case ("WordLevel", ["Fuse"]):
            return "char"
    decoder_names = ", ".join(map(str, decoders))
    raise ValueError(
        f"a model of type {model.get('type')} with the decoder {decoder_names} is none of the "
        "kinds supported: byte-level BPE, BPE or unigram with byte fallback, characters"
    )


def byte_tokens(kind: TokenizerKind) -> tuple[str, ...]:
    """Returns the token of each of the 256 bytes, in order; none for a character tokenizer."""
    if kind == "char":
        return ()
    return _BYTE_LEVEL_TOKENS if kind == "bpe" else BYTE_TOKENS


def is_produced_by_text(kind: TokenizerKind, hf: tokenizers.Tokenizer, token: str) -> bool:
    """Returns whether encoding some text can give the vocabulary entry `token`.

    A special token must not be such an entry. Tokens that merging or Viterbi produce within a
    longer text are also produced from their own text alone, so that is what is encoded here.
    """
    if kind == "char":
        return len(token) == 1
    if kind != "bpe" and token in BYTE_TOKENS:
        return True
    if kind == "unigram":
        ids = hf.encode(token, add_special_tokens=False).ids
    else:
        ids = [encoded.id for encoded in hf.model.tokenize(token)]
    return hf.token_to_id(token) in ids


def token_to_bytes(kind: TokenizerKind, token: str) -> bytes:
    """Returns the bytes that a vocabulary entry represents.

    Example:
        >>> token_to_bytes("bpe", "\\u0120a")
        b' a'
        >>> token_to_bytes("unigram", "<0x41>"), token_to_bytes("char", "<0x41>")
        (b'A', b'<0x41>')
    """
    if kind == "bpe":
        return bytes(UNICODE_TO_BYTE[character] for character in token)
    if kind != "char" and _BYTE_TOKEN.fullmatch(token):
        return bytes([int(token[3:5], 16)])
    return token.encode()
