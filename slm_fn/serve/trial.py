"""A process that tries grammars, and may die of them: a line of JSON with rules in, a line with what is wrong out.

Invariant: imports neither PyTorch nor anything of this package, so that it starts at once and is small; it ends with
its parent, or when a grammar takes longer than told.
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

STACK = 1 << 21  # a quarter of what the server's own threads have: what passes here passes there
MEMORY = 1 << 30
FIRST = 8
TOO_LARGE = ("ParserTooComplex", "LexerTooComplex", "InternalError")


class Vocabulary:
    """The attributes by which llguidance knows a tokenizer; a call encodes, by the longest token that fits.

    Example:
        >>> Vocabulary([b"a", b"b", b"ab"], [], [0])(b"aab")
        [0, 2]
    """

    def __init__(self, tokens: Sequence[bytes], specials: Sequence[int], stops: Sequence[int]) -> None:
        self.tokens, self.special_token_ids = tokens, specials
        self.eos_token_id, self.bos_token_id = stops[0], None
        self.ids = {token: i for i, token in enumerate(tokens) if token and i not in specials}
        self.longest = max(map(len, self.ids), default=0)

    def __call__(self, text: bytes) -> list[int]:
        out, at = list[int](), 0
        while at < len(text):
            fits = (text[at : at + size] for size in range(self.longest, 0, -1))
            found = next((token for token in fits if token in self.ids), None)
            if found is None:
                break  # an alphabet without this character
            out.append(self.ids[found])
            at += len(found)
        return out


def main(lines: IO[str], answer: Callable[[str], None]) -> None:
    """Learn a vocabulary from the first line, and try the rules of every other one."""
    import llguidance

    told = json.loads(lines.readline())
    tokens = [token.encode("latin-1") for token in told["tokens"]]
    known = Vocabulary(tokens, told["specials"], told["stops"])
    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(known), eos_token=told["stops"])
    words = sum(1 << token for token in known.ids.values())
    _bound()
    threading.stack_size(STACK)
    with open(os.devnull, "w") as nowhere:
        for line in lines:
            found: list[str] = []
            trying = threading.Thread(target=_try, args=(tokenizer, words, json.loads(line), found))
            faulthandler.dump_traceback_later(told["seconds"], exit=True, file=nowhere)
            trying.start()
            trying.join()
            faulthandler.cancel_dump_traceback_later()
            answer(json.dumps(found[0]))


def _try(tokenizer: Any, words: int, rules: str, found: list[str]) -> None:
    found.append(wrong(tokenizer, words, rules))


def wrong(tokenizer: Any, words: int, rules: str) -> str:
    """What is wrong with rules by the time a few tokens are chosen: nothing, mostly. `words` has a bit for each."""
    from llguidance import LLMatcher

    try:
        failed, _ = LLMatcher.validate_grammar_with_warnings(rules, tokenizer)
    except ValueError:  # no text
        failed = True
    if failed:
        return ""  # the server says it better
    matcher = LLMatcher(tokenizer, rules, log_level=0)
    for _ in range(FIRST):
        bits = int.from_bytes(matcher.compute_bitmask(), "little") & words
        if not bits or not matcher.consume_token(bits.bit_length() - 1):
            break
    return str(matcher.get_error()) if matcher.stop_reason() in TOO_LARGE else ""


def _bound() -> None:
    """A grammar that wants all memory gets none, and leaves no picture of it on the disk."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


if __name__ == "__main__":
    main(sys.stdin, lambda text: print(text, flush=True))
