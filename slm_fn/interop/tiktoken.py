"""To tiktoken: mergeable ranks, split pattern, control tokens; refused where its ids would be others.

tiktoken merges the neighbours whose bytes together have the lowest rank, and takes a whole chunk that is in the
vocabulary at once; here a merge is a pair of tokens with a place in a list. Both give the same ids when every token's
bytes, merged by the list, become that token again, and tokens are numbered in the order of their merges: then two
neighbours whose bytes make a token are always the pair of that token's own merge. Both conditions are looked at for
every token. What is left is the split pattern, read by another engine: its chunks are compared around every character.

Invariant: an encoding handed out has the tokenizer's ids, merge by merge and chunk by chunk.
"""

from __future__ import annotations

import base64
import itertools
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import models, pre_tokenizers

from slm_fn.text.engine import PROBE
from slm_fn.text.patterns import PATTERNS
from slm_fn.text.spelling import CHARACTER_OF
from slm_fn.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tiktoken

RANKS, TOLD = "tokenizer.tiktoken", "encoding.json"


def export_mergeable_ranks(tokenizer: Tokenizer) -> dict[bytes, int]:
    """Every token's bytes and its id, control tokens left out: what tiktoken calls mergeable ranks.

    Raises:
        ValueError: no byte-level BPE, or one whose ids tiktoken would not give; says why.

    Example:
        >>> from slm_fn.text import bpe
        >>> ranks = export_mergeable_ranks(bpe.train(["ab ab ab ab"], vocab_size=264))
        >>> ranks[b"a"], ranks[b"ab"], ranks[b" ab"]
        (103, 262, 263)
    """
    fields = json.loads(tokenizer.to_json())
    _check_kind(tokenizer, fields)
    model, controls = fields["model"], set(tokenizer.specials.values())
    vocabulary = {piece: i for piece, i in model["vocab"].items() if i not in controls}
    ranks = {tokenizer.token_bytes(i): i for i in sorted(vocabulary.values())}
    lacking = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if lacking:
        raise _refused(f"the vocabulary lacks {len(lacking)} of the 256 bytes, 0x{lacking[0]:02x} first")
    made = [ranks[left + right] for left, right in tokenizer.merges]
    late = next((after for before, after in itertools.pairwise(made) if after < before), None)
    if late is not None:
        raise _refused(f"token {late} is merged later than tokens with larger ids, and tiktoken goes by ids")
    # Merges alone: nothing is split, and no whole word is looked up.
    bare = {"version": "1.0", "added_tokens": [], "model": {**model, "ignore_merges": False}}
    merge = tokenizers.Tokenizer.from_str(json.dumps(bare))
    encoded = merge.encode_batch_fast(list(vocabulary), add_special_tokens=False)
    for i, found in zip(vocabulary.values(), encoded, strict=True):
        if found.ids != [i]:
            raise _refused(
                f"its merges never make token {i} ({tokenizer.token_bytes(i)!r}) but {found.ids}; tiktoken would"
            )
    return ranks


def pattern(tokenizer: Tokenizer) -> str:
    """The regular expression that splits text before merging.

    Raises:
        ValueError: text is not split by one expression.
    """
    step = json.loads(tokenizer.to_json())["pre_tokenizer"] or {"type": "None"}
    steps = step["pretokenizers"] if step["type"] == "Sequence" else [step]
    *splits, last = steps
    if last["type"] == "ByteLevel" and not last["add_prefix_space"]:
        if not splits and last["use_regex"]:
            return PATTERNS["gpt2"]
        if len(splits) == 1 and not last["use_regex"] and splits[0]["type"] == "Split":
            split = splits[0]
            if split["behavior"] == "Isolated" and not split["invert"] and "Regex" in split["pattern"]:
                return str(split["pattern"]["Regex"])
    names = ", ".join(each["type"] for each in steps)
    raise _refused(f"its text is not split by one regular expression that keeps all of it (it is by {names})")


def encoding(tokenizer: Tokenizer, name: str = "slm_fn") -> tiktoken.Encoding:
    """The tokenizer as a `tiktoken.Encoding`; `encode_ordinary` is our `encode`.

    Raises:
        ValueError: tiktoken would give other ids, or is not installed.

    Example:
        >>> from slm_fn.text import bpe
        >>> tokenizer = bpe.train(["to be, or not to be"], vocab_size=270)
        >>> encoding(tokenizer).encode_ordinary("not to <|end|>") == tokenizer.encode("not to <|end|>")
        True
    """
    ranks = export_mergeable_ranks(tokenizer)
    return _agreeing(tokenizer, _build(name, pattern(tokenizer), ranks, tokenizer.specials))


def files(tokenizer: Tokenizer, name: str = "slm_fn") -> dict[str, str]:
    """What a folder needs that tiktoken is to read: the ranks in its own format, and the other arguments as JSON.

    Raises:
        ValueError: tiktoken would give other ids.
    """
    ranks = export_mergeable_ranks(tokenizer)
    lines = (f"{base64.b64encode(data).decode()} {rank}\n" for data, rank in sorted(ranks.items(), key=lambda x: x[1]))
    told = {"name": name, "pat_str": pattern(tokenizer), "special_tokens": tokenizer.specials}
    return {RANKS: "".join(lines), TOLD: json.dumps(told, indent=2, ensure_ascii=False) + "\n"}


def load(folder: Path | str, tokenizer: Tokenizer | None = None) -> tiktoken.Encoding:
    """Read what `files` described.

    Args:
        tokenizer: the one it was made from, to compare ids with.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, the ids are others, or tiktoken is not installed.
    """
    try:
        told = json.loads((Path(folder) / TOLD).read_text(encoding="utf-8"))
        rows = (line.split() for line in (Path(folder) / RANKS).read_bytes().splitlines())
        ranks = {base64.b64decode(data, validate=True): int(rank) for data, rank in rows}
        made = _build(told["name"], told["pat_str"], ranks, told["special_tokens"])
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error.filename}: missing; an export holds {RANKS} and {TOLD}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is no tiktoken export: {error}") from None
    return made if tokenizer is None else _agreeing(tokenizer, made)


def _refused(reason: str) -> ValueError:
    return ValueError(f"this tokenizer has no exact form in tiktoken: {reason}")


def _check_kind(tokenizer: Tokenizer, fields: dict[str, Any]) -> None:
    """Refuse whatever changes text or merges and has no place in tiktoken."""
    model = fields["model"]
    if tokenizer.kind != "bpe":
        raise _refused(f"its kind is {tokenizer.kind}, and tiktoken knows byte-level BPE alone")
    if fields["normalizer"] is not None:
        raise _refused(f"it changes text before encoding ({fields['normalizer']['type']}), and tiktoken cannot")
    odd = [name for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
    if odd:
        raise _refused(f"its merges have {odd[0]} {model[odd[0]]!r}")
    plain = [token["content"] for token in fields["added_tokens"] if not token["special"]]
    if plain:
        raise _refused(f"it finds the added token {plain[0]!r} in plain text, and tiktoken does not")


def _build(name: str, pat_str: str, ranks: dict[bytes, int], specials: dict[str, int]) -> tiktoken.Encoding:
    try:
        import tiktoken
    except ImportError:
        raise ValueError("tiktoken is not installed, and an export is compared with it: pip install tiktoken") from None
    try:
        return tiktoken.Encoding(name, pat_str=pat_str, mergeable_ranks=ranks, special_tokens=specials)
    except ValueError as error:
        raise _refused(f"it does not take the pattern {pat_str!r}: {error}") from None


def _agreeing(tokenizer: Tokenizer, made: tiktoken.Encoding) -> tiktoken.Encoding:
    """The encoding, if it splits around every character as the tokenizer does, and has its ids on the probe."""
    expression = pattern(tokenizer)
    odd = _split_otherwise(expression)
    if odd is not None:
        raise _refused(f"the two engines read the pattern {expression!r} differently around {odd!r}")
    for text in (PROBE, *tokenizer.specials):
        if tokenizer.encode(text) != made.encode_ordinary(text):
            raise _refused(f"its ids differ on a text that begins {text[:20]!r}")
    return made


@cache
def _split_otherwise(expression: str) -> str | None:
    """The first text that tiktoken's engine splits at other places than Hugging Face's; None when there is none.

    Tokens are bytes, and pairs of a byte and a sign of `marks`: such a pair stays in two exactly where a chunk ends.
    """
    marks = [ord(mark) for mark in "a1! "]
    pairs = [pair for m in marks for byte in range(256) for pair in (bytes([m, byte]), bytes([byte, m]))]
    ranks = {piece: i for i, piece in enumerate(dict.fromkeys([*(bytes([byte]) for byte in range(256)), *pairs]))}
    spelt = {piece: "".join(CHARACTER_OF[byte] for byte in piece) for piece in ranks}
    merges = [(spelt[piece[:1]], spelt[piece[1:]]) for piece in ranks if len(piece) == 2]
    ours = tokenizers.Tokenizer(models.BPE({spelt[piece]: i for piece, i in ranks.items()}, merges))
    split = pre_tokenizers.Split(tokenizers.Regex(expression), behavior="isolated")
    ours.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    theirs = _build("split", expression, ranks, {})

    def alike(text: str) -> bool:
        try:
            return ours.encode_batch_fast([text])[0].ids == theirs.encode_ordinary(text)
        except BaseException as error:  # a pattern that matches nothing at all panics: PanicException is no Exception
            if type(error).__name__ != "PanicException":
                raise
            return False

    # The planes that hold characters; tags and private use need not be looked at one by one.
    for first in (*range(0, 0xD800, 0x400), *range(0xE000, 0x3_4000, 0x400), *range(0xE_0000, 0xE_0400, 0x400)):
        around = [f"a{chr(c)}1{chr(c)}! {chr(c)}" for c in range(first, first + 0x400)]
        if not alike("".join(around)):
            return next((text for text in around if not alike(text)), around[0])
    return None if alike(PROBE) else PROBE
