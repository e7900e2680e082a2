"""Split patterns: the regular expressions that cut text into chunks, which no merge crosses.

Hugging Face tokenizers, gigatoken, tiktoken and llama.cpp all implement the named ones, so every
export keeps its ids.

Invariant: the matches of a pattern, joined, are the full text, and they are the chunks that the
tokenizer uses.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import regex  # the standard library's `re` has no \p{L}

SPLIT_PATTERNS = {
    # Words with the sign or space before them, single digits, runs of signs, line ends, spaces.
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    # Lower-case contractions, numbers of any length.
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    # As qwen2 with up to three digits together; llama3 uses the split of cl100k.
    "cl100k": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
SPLIT_PATTERNS["llama3"] = SPLIT_PATTERNS["cl100k"]

LLAMA_CPP_NAMES = {
    "qwen2": "qwen2",
    "gpt2": "gpt-2",
    "cl100k": "llama-bpe",
    "llama3": "llama-bpe",
}
"""llama.cpp's names of these splits, as written into GGUF files."""

_COVERAGE_PROBES = (
    " ",
    "\n",
    "a",
    "7",
    "é",
    "\U0001f600",
    "_",
    "\x00",
    " \t\r\n",
    "it's 12,5 a\n\n b",
)


def resolve(pattern: str) -> str:
    """Returns the regular expression of a named pattern, or the given expression itself.

    Args:
        pattern: a name of `SPLIT_PATTERNS` or a regular expression.

    Raises:
        ValueError: the expression does not compile, or does not match all of some text.

    Example:
        >>> resolve("gpt2").startswith("'")
        True
        >>> resolve(r"\\w+")
        Traceback (most recent call last):
        ...
        ValueError: the split pattern '\\\\w+' leaves out ' ': end it with |\\s+|.
    """
    if pattern in SPLIT_PATTERNS:
        return SPLIT_PATTERNS[pattern]
    try:
        compiled = _compile(pattern)
    except regex.error as error:
        names = ", ".join(SPLIT_PATTERNS)
        raise ValueError(
            f"the split pattern {pattern!r} is no name ({names}) and does not compile: {error}"
        ) from None
    for text in _COVERAGE_PROBES:
        chunks = compiled.findall(text)
        if "".join(chunks) != text or "" in chunks:
            raise ValueError(
                f"the split pattern {pattern!r} leaves out {text!r}: end it with |\\s+|."
            )
    return pattern


def pattern_name(expression: str) -> str:
    """Returns the first name of a split expression, `custom` if it has none.

    Example:
        >>> pattern_name(SPLIT_PATTERNS["llama3"]), pattern_name(".")
        ('cl100k', 'custom')
    """
    for name, named_expression in SPLIT_PATTERNS.items():
        if named_expression == expression:
            return name
    return "custom"


def export_warning(expression: str) -> str:
    """Returns which exports a split expression rules out, in words; empty if none.

    Example:
        >>> export_warning(SPLIT_PATTERNS["qwen2"])
        ''
        >>> export_warning(".")
        'llama.cpp and gigatoken do not support this split: no GGUF export, and slower packing'
    """
    if pattern_name(expression) in LLAMA_CPP_NAMES:
        return ""
    return "llama.cpp and gigatoken do not support this split: no GGUF export, and slower packing"


def make_splitter(expression: str, isolate: str = "") -> Callable[[str], list[str]]:
    """Returns a function that splits a text into chunks.

    Args:
        expression: the regular expression of a chunk.
        isolate: a string that is always a chunk by itself; the text around it is split separately.

    Example:
        >>> make_splitter(SPLIT_PATTERNS["qwen2"])("it's 12 of <x>")
        ['it', "'s", ' ', '1', '2', ' of', ' <', 'x', '>']
        >>> make_splitter(SPLIT_PATTERNS["qwen2"], isolate="<")("of <x>")
        ['of', ' ', '<', 'x', '>']
    """
    find_chunks: Callable[[str], list[str]] = _compile(expression).findall
    if not isolate:
        return find_chunks

    def split(text: str) -> list[str]:
        first, *others = text.split(isolate)
        chunks = find_chunks(first)
        for section in others:
            chunks.append(isolate)
            chunks += find_chunks(section)
        return chunks

    return split


@cache
def _compile(expression: str) -> regex.Pattern[str]:
    return regex.compile(expression)
