"""Log probabilities of tokens in OpenAI's two formats: that of chat and that of completions.

Invariant: of no two tokens is `TokenFormatter.to_unique_text` the same, so it can be a key.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, NamedTuple

from slm_fn.text.tokenizer import Tokenizer

IMPOSSIBLE_LOGPROB = -9999.0
"""OpenAI's value for a probability of zero, since JSON has no infinity."""


class TokenLogprob(NamedTuple):
    """A token, its log probability (nats), and the most likely ids with theirs.

    The first token of a prompt has no log probability.
    """

    id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


class TokenFormatter:
    """Converts token ids to the bytes and texts that responses contain."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.special_names = {token: name for name, token in tokenizer.special_tokens.items()}

    def to_bytes(self, token: int) -> bytes | None:
        """Returns the bytes of a token; None where it stands for no text."""
        if token in self.special_names:
            return None
        try:
            return self.tokenizer.token_bytes(token)
        except ValueError:
            return None  # an id that only pads the embedding

    def to_text(self, token: int) -> str:
        """Returns the text of a token in chat responses: invalid UTF-8 becomes U+FFFD."""
        data = self.to_bytes(token)
        if data is None:
            return self._special_text(token)
        return data.decode("utf-8", "replace")

    def to_unique_text(self, token: int) -> str:
        """Returns the text of a token in completions, where it is the key of a table."""
        data = self.to_bytes(token)
        if data is None:
            return self._special_text(token)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _special_text(self, token: int) -> str:
        return self.special_names.get(token, f"<|id {token}|>")


class TextOffset:
    """The position in a text, in characters, at which the next token begins.

    A token that completes a multi-byte character begins at that character.

    Example:
        >>> offset = TextOffset()
        >>> [offset.advance(data) for data in (b"h", bytes([0xC3]), bytes([0xA9]), b"!")]
        [0, 1, 1, 2]
    """

    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.position = 0

    def advance(self, data: bytes) -> int:
        """Returns where these bytes begin, and moves behind them."""
        start = self.position
        self.position += len(self.decoder.decode(data))
        return start


def chat_logprobs(
    formatter: TokenFormatter, logprobs: Sequence[TokenLogprob], offset: TextOffset
) -> dict[str, Any]:
    """Returns the `logprobs` of a chat choice; this format has no text offsets."""
    content = []
    for each in logprobs:
        entry = _chat_entry(formatter, each.id, each.logprob)
        alternatives = [_chat_entry(formatter, token, logprob) for token, logprob in each.top]
        content.append({**entry, "top_logprobs": alternatives})
    return {"content": content, "refusal": None}


def _chat_entry(formatter: TokenFormatter, token: int, logprob: float | None) -> dict[str, Any]:
    data = formatter.to_bytes(token)
    return {
        "token": formatter.to_text(token),
        "logprob": to_finite(logprob),
        "bytes": None if data is None else list(data),
    }


def completion_logprobs(
    formatter: TokenFormatter, logprobs: Sequence[TokenLogprob], offset: TextOffset
) -> dict[str, Any]:
    """Returns the `logprobs` of a completion's choice.

    The alternatives include the chosen token with the very same number: evaluation compares them.

    Args:
        formatter: converts the tokens to text.
        logprobs: the tokens of this choice, or of one chunk of it.
        offset: where these tokens begin in the text; it moves behind them.
    """
    return {
        "tokens": [formatter.to_unique_text(each.id) for each in logprobs],
        "token_logprobs": [_finite_or_none(each.logprob) for each in logprobs],
        "top_logprobs": [_alternatives(formatter, each) for each in logprobs],
        "text_offset": [offset.advance(formatter.to_bytes(each.id) or b"") for each in logprobs],
    }


def _alternatives(formatter: TokenFormatter, each: TokenLogprob) -> dict[str, float] | None:
    if each.logprob is None:
        return None
    pairs = (*each.top, (each.id, each.logprob))
    return {formatter.to_unique_text(token): to_finite(logprob) for token, logprob in pairs}


def _finite_or_none(logprob: float | None) -> float | None:
    return None if logprob is None else to_finite(logprob)


def to_finite(logprob: float | None) -> float:
    """Returns a log probability that JSON can represent."""
    if logprob is None or logprob == float("-inf"):
        return IMPOSSIBLE_LOGPROB
    return logprob
