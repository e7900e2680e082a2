"""Export to tiktoken: mergeable ranks, split pattern and special tokens, if its ids are the same.

tiktoken merges the two neighbours whose joined bytes have the lowest rank, and looks up a full
chunk first; here a merge is a pair of tokens with an index in a list. Both give the same ids when
every token's bytes, merged by the list, become that token again, and tokens are numbered in the
order of their merges: then two neighbours whose bytes make a token are always the pair of that
token's own merge. Both conditions are checked for every token. The split pattern is read by
another regular expression engine: its chunks are compared around every character.

Invariant: an encoding returned here has the tokenizer's ids, merge by merge and chunk by chunk.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import models, pre_tokenizers

from slm_fn.text.byte_vocab import BYTE_TO_UNICODE
from slm_fn.text.encoder import PROBE_TEXT
from slm_fn.text.patterns import SPLIT_PATTERNS
from slm_fn.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tiktoken

RANKS_FILE = "tokenizer.tiktoken"
ENCODING_FILE = "encoding.json"

_BLOCK = 0x400
"""Characters whose chunks are compared at once."""


def export_mergeable_ranks(tokenizer: Tokenizer) -> dict[bytes, int]:
    """Returns tiktoken's mergeable ranks: every token's bytes and its id, without special tokens.

    Raises:
        ValueError: no byte-level BPE, or one whose ids tiktoken would not give; the message says
            why.

    Example:
        >>> from slm_fn.text.training import bpe
        >>> ranks = export_mergeable_ranks(bpe.train(["ab ab ab ab"], vocab_size=264))
        >>> ranks[b"a"], ranks[b"ab"], ranks[b" ab"]
        (103, 262, 263)
    """
    fields = json.loads(tokenizer.to_json())
    _check_kind(tokenizer, fields)
    special_ids = set(tokenizer.special_tokens.values())
    vocabulary = {
        token: token_id
        for token, token_id in fields["model"]["vocab"].items()
        if token_id not in special_ids
    }
    ranks = {tokenizer.token_bytes(token_id): token_id for token_id in sorted(vocabulary.values())}
    _check_bytes(ranks)
    _check_merge_order(tokenizer, ranks)
    _check_merges(tokenizer, fields["model"], vocabulary)
    return ranks


def _check_bytes(ranks: dict[bytes, int]) -> None:
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise _refusal(
            f"the vocabulary lacks {len(missing)} of the 256 bytes, 0x{missing[0]:02x} first"
        )


def _check_merge_order(tokenizer: Tokenizer, ranks: dict[bytes, int]) -> None:
    """Checks that tokens are numbered in the order of their merges."""
    merged_ids = [ranks[left + right] for left, right in tokenizer.merges]
    for previous_id, token_id in itertools.pairwise(merged_ids):
        if token_id < previous_id:
            raise _refusal(
                f"token {token_id} is merged later than tokens with larger ids, "
                "and tiktoken merges in the order of ids"
            )


def _check_merges(
    tokenizer: Tokenizer,
    model: dict[str, Any],
    vocabulary: dict[str, int],
) -> None:
    """Checks that every token's bytes, merged by the list, become that token again."""
    # Merges alone: no text is split, and no full word is looked up.
    merges_only = {
        "version": "1.0",
        "added_tokens": [],
        "model": {**model, "ignore_merges": False},
    }
    merger = tokenizers.Tokenizer.from_str(json.dumps(merges_only))
    encodings = merger.encode_batch_fast(list(vocabulary), add_special_tokens=False)
    for token_id, encoding in zip(vocabulary.values(), encodings, strict=True):
        if encoding.ids != [token_id]:
            token_bytes = tokenizer.token_bytes(token_id)
            raise _refusal(
                f"its merges never make token {token_id} ({token_bytes!r}) but {encoding.ids}; "
                "tiktoken would"
            )


def split_pattern(tokenizer: Tokenizer) -> str:
    """Returns the regular expression that splits text before merging.

    Raises:
        ValueError: text is not split by one expression.
    """
    pre_tokenizer = json.loads(tokenizer.to_json())["pre_tokenizer"] or {"type": "None"}
    is_sequence = pre_tokenizer["type"] == "Sequence"
    steps = pre_tokenizer["pretokenizers"] if is_sequence else [pre_tokenizer]
    pattern = _pattern_of_steps(steps)
    if pattern is None:
        names = ", ".join(step["type"] for step in steps)
        raise _refusal(
            "its text is not split by one regular expression that keeps all of it "
            f"(it is by {names})"
        )
    return pattern


def _pattern_of_steps(steps: list[dict[str, Any]]) -> str | None:
    """Returns the one expression that these pre-tokenizers split by, or None."""
    *splits, byte_level = steps
    if byte_level["type"] != "ByteLevel" or byte_level["add_prefix_space"]:
        return None
    if byte_level["use_regex"]:
        return None if splits else SPLIT_PATTERNS["gpt2"]
    if len(splits) != 1 or splits[0]["type"] != "Split":
        return None
    split = splits[0]
    keeps_everything = split["behavior"] == "Isolated" and not split["invert"]
    if not keeps_everything or "Regex" not in split["pattern"]:
        return None
    return str(split["pattern"]["Regex"])


def export_files(tokenizer: Tokenizer, name: str = "slm_fn") -> dict[str, str]:
    """Returns an export's files: the ranks in tiktoken's format, its other arguments as JSON.

    Args:
        tokenizer: the tokenizer.
        name: the name of the encoding.

    Raises:
        ValueError: tiktoken would give other ids.
    """
    ranks = export_mergeable_ranks(tokenizer)
    lines = []
    for token_bytes, rank in sorted(ranks.items(), key=lambda item: item[1]):
        lines.append(f"{base64.b64encode(token_bytes).decode()} {rank}\n")
    arguments = {
        "name": name,
        "pat_str": split_pattern(tokenizer),
        "special_tokens": tokenizer.special_tokens,
    }
    arguments_json = json.dumps(arguments, indent=2, ensure_ascii=False) + "\n"
    return {RANKS_FILE: "".join(lines), ENCODING_FILE: arguments_json}


def load_encoding(folder: Path | str, tokenizer: Tokenizer | None = None) -> tiktoken.Encoding:
    """Reads the files of `export_files` as a `tiktoken.Encoding`.

    Args:
        folder: where the files were written.
        tokenizer: the one they were made from, to compare ids with.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, the ids differ, or tiktoken is not installed.
    """
    folder = Path(folder)
    try:
        arguments = json.loads((folder / ENCODING_FILE).read_text(encoding="utf-8"))
        ranks = _parse_ranks((folder / RANKS_FILE).read_bytes())
        encoding = _build_encoding(
            arguments["name"], arguments["pat_str"], ranks, arguments["special_tokens"]
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error.filename}: missing; an export holds {RANKS_FILE} and {ENCODING_FILE}"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is no tiktoken export: {error}") from None
    if tokenizer is not None:
        _check_same_ids(tokenizer, encoding)
    return encoding


def _parse_ranks(contents: bytes) -> dict[bytes, int]:
    ranks = {}
    for line in contents.splitlines():
        encoded, rank = line.split()
        ranks[base64.b64decode(encoded, validate=True)] = int(rank)
    return ranks


def _refusal(reason: str) -> ValueError:
    return ValueError(f"this tokenizer has no exact form in tiktoken: {reason}")


def _check_kind(tokenizer: Tokenizer, fields: dict[str, Any]) -> None:
    """Refuses what changes text or merges and has no equivalent in tiktoken."""
    model = fields["model"]
    if tokenizer.kind != "bpe":
        raise _refusal(f"its kind is {tokenizer.kind}, and tiktoken supports byte-level BPE only")
    if fields["normalizer"] is not None:
        normalizer = fields["normalizer"]["type"]
        raise _refusal(f"it changes text before encoding ({normalizer}), and tiktoken cannot")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise _refusal(f"its merges have {option} {model[option]!r}")
    for token in fields["added_tokens"]:
        if not token["special"]:
            raise _refusal(
                f"it finds the added token {token['content']!r} in plain text, "
                "and tiktoken does not"
            )


def _build_encoding(
    name: str,
    pattern: str,
    ranks: dict[bytes, int],
    special_tokens: dict[str, int],
) -> tiktoken.Encoding:
    try:
        import tiktoken
    except ImportError:
        raise ValueError(
            "tiktoken is not installed, and an export is compared with it: pip install tiktoken"
        ) from None
    try:
        return tiktoken.Encoding(
            name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special_tokens
        )
    except ValueError as error:
        raise _refusal(f"it does not take the pattern {pattern!r}: {error}") from None


def _check_same_ids(tokenizer: Tokenizer, encoding: tiktoken.Encoding) -> None:
    """Compares the chunks around every character, and the ids of a probe text."""
    pattern = split_pattern(tokenizer)
    differing_text = _find_split_difference(pattern)
    if differing_text is not None:
        raise _refusal(
            f"the two engines read the pattern {pattern!r} differently around {differing_text!r}"
        )
    for text in (PROBE_TEXT, *tokenizer.special_tokens):
        if tokenizer.encode(text) != encoding.encode_ordinary(text):
            raise _refusal(f"its ids differ on a text that begins {text[:20]!r}")


@cache
def _find_split_difference(pattern: str) -> str | None:
    """Returns the first text that the two engines split into different chunks, or None."""
    comparison = _SplitComparison(pattern)
    for first in _block_starts():
        contexts = [f"a{chr(c)}1{chr(c)}! {chr(c)}" for c in range(first, first + _BLOCK)]
        if comparison.agrees_on("".join(contexts)):
            continue
        for text in contexts:
            if not comparison.agrees_on(text):
                return text
        return contexts[0]
    return None if comparison.agrees_on(PROBE_TEXT) else PROBE_TEXT


def _block_starts() -> Iterator[int]:
    """Yields the first code points of the blocks of the planes that hold characters.

    Tags and private use need no comparison one by one; surrogates are no characters.
    """
    yield from range(0, 0xD800, _BLOCK)
    yield from range(0xE000, 0x3_4000, _BLOCK)
    yield from range(0xE_0000, 0xE_0400, _BLOCK)


class _SplitComparison:
    """One split pattern in both engines, with a vocabulary that reveals where chunks end.

    Tokens are bytes, and pairs of a byte and one of a few marks: such a pair is encoded as two
    tokens exactly where a chunk ends.
    """

    def __init__(self, pattern: str) -> None:
        ranks = _boundary_ranks()
        self._ours = _boundary_tokenizer(ranks, pattern)
        self._theirs = _build_encoding("split", pattern, ranks, {})

    def agrees_on(self, text: str) -> bool:
        """Whether both engines split the text into the same chunks."""
        try:
            ours = self._ours.encode_batch_fast([text])[0].ids
            theirs = self._theirs.encode_ordinary(text)
        except BaseException as error:
            # A pattern that matches nothing at all panics, and PanicException is no Exception.
            if type(error).__name__ != "PanicException":
                raise
            return False
        return bool(ours == theirs)


def _boundary_ranks() -> dict[bytes, int]:
    tokens = [bytes([byte]) for byte in range(256)]
    for mark in b"a1! ":
        for byte in range(256):
            tokens.append(bytes([mark, byte]))
            tokens.append(bytes([byte, mark]))
    return {token: rank for rank, token in enumerate(dict.fromkeys(tokens))}


def _boundary_tokenizer(ranks: dict[bytes, int], pattern: str) -> tokenizers.Tokenizer:
    spelling = {token: "".join(BYTE_TO_UNICODE[byte] for byte in token) for token in ranks}
    vocabulary = {spelling[token]: rank for token, rank in ranks.items()}
    merges = [(spelling[token[:1]], spelling[token[1:]]) for token in ranks if len(token) == 2]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return tokenizer
