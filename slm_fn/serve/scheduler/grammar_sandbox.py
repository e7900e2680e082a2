"""A separate process that compiles untrusted grammars, so that a crash or a hang ends only itself.

It reads a line of JSON with a grammar's rules, and writes a line with the error, empty if none.

Invariant: imports neither PyTorch nor this package, so it starts quickly and is small; it ends with
its parent, or when a grammar exceeds the time limit.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, Any

STACK_BYTES = 1 << 21  # a quarter of the server's threads: what passes here passes there
MEMORY_BYTES = 1 << 30
NUM_TRIAL_TOKENS = 8
LIMIT_REASONS = ("ParserTooComplex", "LexerTooComplex", "InternalError")


class Vocabulary:
    """A tokenizer with the attributes that llguidance reads; a call encodes bytes.

    Each token is the longest one that fits.

    Args:
        tokens: the bytes of each id.
        specials: ids of special tokens.
        stops: ids that end a text.

    Example:
        >>> Vocabulary([b"a", b"b", b"ab"], [], [0])(b"aab")
        [0, 2]
    """

    def __init__(
        self, tokens: Sequence[bytes], specials: Sequence[int], stops: Sequence[int]
    ) -> None:
        self.tokens = tokens
        self.special_token_ids = specials
        self.eos_token_id = stops[0]
        self.bos_token_id = None
        self.ids = {token: i for i, token in enumerate(tokens) if token and i not in specials}
        self.max_bytes = max(map(len, self.ids), default=0)

    def __call__(self, text: bytes) -> list[int]:
        ids: list[int] = []
        start = 0
        while start < len(text):
            token = self._longest_token(text, start)
            if token is None:
                break  # the vocabulary has no token for this character
            ids.append(self.ids[token])
            start += len(token)
        return ids

    def _longest_token(self, text: bytes, start: int) -> bytes | None:
        for size in range(self.max_bytes, 0, -1):
            token = text[start : start + size]
            if token in self.ids:
                return token
        return None


def main(lines: IO[str], answer: Callable[[str], None]) -> None:
    """Reads a vocabulary from the first line, and checks the rules of every other line.

    Args:
        lines: lines of JSON.
        answer: writes one line.
    """
    import llguidance

    setup = json.loads(lines.readline())
    tokens = [token.encode("latin-1") for token in setup["tokens"]]
    vocabulary = Vocabulary(tokens, setup["specials"], setup["stops"])
    wrapper = llguidance.TokenizerWrapper(vocabulary)
    tokenizer = llguidance.LLTokenizer(wrapper, eos_token=setup["stops"])
    text_token_bits = sum(1 << token for token in vocabulary.ids.values())
    _limit_resources()
    threading.stack_size(STACK_BYTES)
    with open(os.devnull, "w") as traceback_file:
        for line in lines:
            errors: list[str] = []
            arguments = (tokenizer, text_token_bits, json.loads(line), errors)
            thread = threading.Thread(target=_append_error, args=arguments)
            faulthandler.dump_traceback_later(setup["seconds"], exit=True, file=traceback_file)
            thread.start()
            thread.join()
            faulthandler.cancel_dump_traceback_later()
            answer(json.dumps(errors[0]))


def _append_error(tokenizer: Any, text_token_bits: int, rules: str, errors: list[str]) -> None:
    errors.append(find_error(tokenizer, text_token_bits, rules))


def find_error(tokenizer: Any, text_token_bits: int, rules: str) -> str:
    """Returns which limit of the library rules exceed within a few tokens; empty if none.

    Args:
        tokenizer: llguidance's.
        text_token_bits: an integer whose bit i is set if token i stands for text.
        rules: a grammar in llguidance's form.
    """
    from llguidance import LLMatcher

    try:
        is_invalid, _ = LLMatcher.validate_grammar_with_warnings(rules, tokenizer)
    except ValueError:  # not valid text
        is_invalid = True
    if is_invalid:
        return ""  # the server's own message is better
    matcher = LLMatcher(tokenizer, rules, log_level=0)
    for _ in range(NUM_TRIAL_TOKENS):
        allowed_bits = int.from_bytes(matcher.compute_bitmask(), "little") & text_token_bits
        highest_token = allowed_bits.bit_length() - 1
        if not allowed_bits or not matcher.consume_token(highest_token):
            break
    return str(matcher.get_error()) if matcher.stop_reason() in LIMIT_REASONS else ""


def _limit_resources() -> None:
    """Limits this process's memory, and disables core dumps."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _print_line(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main(sys.stdin, _print_line)
