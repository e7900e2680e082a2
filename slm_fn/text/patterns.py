"""Split patterns: the regular expressions that cut text into chunks, which no merge crosses.

Named ones are known to Hugging Face tokenizers, gigatoken, tiktoken and llama.cpp alike, so every export keeps its ids.

Invariant: a pattern's matches, end to end, are the whole text; `split` finds the chunks that the tokenizer will see.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import regex  # the library `re` has no \p{L}

PATTERNS = {
    # Words with the sign or space before them, digits one by one, runs of signs, line ends, white space.
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
    # Lower-case contractions, whole numbers.
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    # As qwen2 with up to three digits together; llama3 took the split of cl100k over.
    "cl100k": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
}
PATTERNS["llama3"] = PATTERNS["cl100k"]

GGUF = {"qwen2": "qwen2", "gpt2": "gpt-2", "cl100k": "llama-bpe", "llama3": "llama-bpe"}
"""What llama.cpp calls these splits."""


def resolve(pattern: str) -> str:
    """The regular expression of a name, or the expression itself.

    Raises:
        ValueError: the expression does not compile, or there are texts that it does not cover.

    Example:
        >>> resolve("gpt2").startswith("'")
        True
        >>> resolve(r"\\w+")
        Traceback (most recent call last):
        ...
        ValueError: the split pattern '\\\\w+' leaves out ' ': end it with |\\s+|.
    """
    if pattern in PATTERNS:
        return PATTERNS[pattern]
    try:
        compiled = _compiled(pattern)
    except regex.error as error:
        raise ValueError(
            f"the split pattern {pattern!r} is no name ({', '.join(PATTERNS)}) and does not compile: {error}"
        ) from None
    for text in (" ", "\n", "a", "7", "é", "\U0001f600", "_", "\x00", " \t\r\n", "it's 12,5 a\n\n b"):
        if "".join(compiled.findall(text)) != text or "" in compiled.findall(text):
            raise ValueError(f"the split pattern {pattern!r} leaves out {text!r}: end it with |\\s+|.")
    return pattern


def name(expression: str) -> str:
    """The first name of an expression, `custom` for one that has none."""
    return next((known for known, found in PATTERNS.items() if found == expression), "custom")


def closes(expression: str) -> str:
    """Which exports an expression closes, in words; empty when none.

    Example:
        >>> closes(PATTERNS["qwen2"]), closes(".")
        ('', 'this split is not one that llama.cpp and gigatoken know: no GGUF export, and slower packing')
    """
    if name(expression) in GGUF:
        return ""
    return "this split is not one that llama.cpp and gigatoken know: no GGUF export, and slower packing"


def split(expression: str, isolate: str = "") -> Callable[[str], list[str]]:
    """A function from a text to its chunks.

    Args:
        isolate: a string that is always a chunk by itself; what is between is split alone.

    Example:
        >>> split(PATTERNS["qwen2"])("it's 12 of <x>")
        ['it', "'s", ' ', '1', '2', ' of', ' <', 'x', '>']
        >>> split(PATTERNS["qwen2"], isolate="<")("of <x>")
        ['of', ' ', '<', 'x', '>']
    """
    find = _compiled(expression).findall
    if not isolate:
        return find

    def chunks(text: str) -> list[str]:
        first, *rest = text.split(isolate)
        out = find(first)
        for part in rest:
            out.append(isolate)
            out += find(part)
        return out

    return chunks


@cache
def _compiled(expression: str) -> regex.Pattern[str]:
    return regex.compile(expression)
