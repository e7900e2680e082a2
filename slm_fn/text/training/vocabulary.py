"""Special tokens of every vocabulary trained here, and how many tokens training may add to them.

Invariant: special tokens are distinct, not empty, and text never becomes one of them.
"""

from __future__ import annotations

from collections.abc import Sequence

SPECIAL_TOKENS = ("<|endoftext|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
"""The reserved special tokens: ids 0 to 5 of every subword vocabulary trained here."""


def count_trainable_tokens(vocab_size: int, min_tokens: int, special_tokens: Sequence[str]) -> int:
    """Returns how many tokens a vocabulary holds besides its special tokens.

    Args:
        vocab_size: size of the vocabulary, special tokens included.
        min_tokens: tokens that the vocabulary must hold besides the special ones.
        special_tokens: names of the special tokens.

    Raises:
        ValueError: fewer than `min_tokens` fit, or a special token is empty or repeated.

    Example:
        >>> count_trainable_tokens(300, 256, SPECIAL_TOKENS)
        294
    """
    num_special = len(special_tokens)
    required = min_tokens + num_special
    if vocab_size < required:
        raise ValueError(
            f"vocab_size {vocab_size} is too small: {min_tokens} bytes and characters and "
            f"{num_special} special tokens take {required}"
        )
    if len(set(special_tokens)) < num_special or "" in special_tokens:
        names = ", ".join(map(repr, special_tokens))
        raise ValueError(f"special tokens must be distinct and not empty, got {names}")
    return vocab_size - num_special


def drop_special_merges(
    merges: Sequence[tuple[str, str]], special_tokens: Sequence[str]
) -> list[tuple[str, str]]:
    """Returns the merges without those that produce a special token or use a dropped one.

    Without this, text that contains the name of a special token would be encoded as that token.

    Example:
        >>> drop_special_merges([("a", "b"), ("c", "ab"), ("cab", "d"), ("a", "d")], ["cab"])
        [('a', 'b'), ('a', 'd')]
    """
    kept: list[tuple[str, str]] = []
    dropped = set(special_tokens)
    for left, right in merges:
        merged = left + right
        if dropped.isdisjoint((left, right, merged)):
            kept.append((left, right))
        else:
            dropped.add(merged)
    return kept
