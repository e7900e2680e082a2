"""The wire, outwards: OpenAI's replies, stream chunks, log probabilities and usage.

Invariant: the parts of a stream, joined, are the whole reply; only the chunk that tells the usage has no choices.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from slm_fn.text.tokenizer import Tokenizer

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


class Said(NamedTuple):
    """One token's account: its log probability, and the likeliest ids with theirs. The first of a prompt has none."""

    id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


class Part(NamedTuple):
    """What came of choice `number`: text, the tokens behind it, how many there are so far, and at last why it ended."""

    number: int
    text: str
    said: tuple[Said, ...] = ()
    num_tokens: int = 0
    finish: str | None = None
    cached: int = 0


class Names:
    """How tokens are written in a reply: text, bytes, or a control token's name."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.controls = {i: name for name, i in tokenizer.specials.items()}

    def data(self, token: int) -> bytes | None:
        """The bytes of a token; None where it stands for no text."""
        try:
            return None if token in self.controls else self.tokenizer.token_bytes(token)
        except ValueError:
            return None  # a row that pads the embedding

    def text(self, token: int) -> str:
        """The text of a token, as chat replies tell it: bytes that are no UTF-8 become U+FFFD."""
        data = self.data(token)
        return self._control(token) if data is None else data.decode("utf-8", "replace")

    def unique(self, token: int) -> str:
        """The text of a token as completions tell it, where it is the key of a table: no two tokens share one."""
        data = self.data(token)
        if data is None:
            return self._control(token)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _control(self, token: int) -> str:
        return self.controls.get(token, f"<|id {token}|>")


def chat_logprobs(names: Names, said: Sequence[Said]) -> dict[str, Any]:
    """Per token what it was, and what else it might have been."""

    def told(token: int, logprob: float | None) -> dict[str, Any]:
        data = names.data(token)
        return {
            "token": names.text(token),
            "logprob": finite(logprob),
            "bytes": None if data is None else list(data),
        }

    content = [{**told(s.id, s.logprob), "top_logprobs": [told(*pair) for pair in s.top]} for s in said]
    return {"content": content, "refusal": None}


class Place:
    """Where the next token begins in a text, in characters: of one whose bytes end a character, with that character.

    Example:
        >>> place = Place()
        >>> [place.take(data) for data in (b"h", bytes([0xC3]), bytes([0xA9]), b"!")]
        [0, 1, 1, 2]
    """

    def __init__(self) -> None:
        self.decoder, self.at = codecs.getincrementaldecoder("utf-8")("replace"), 0

    def take(self, data: bytes) -> int:
        """Where these bytes begin; the next ones begin behind them."""
        at = self.at
        self.at += len(self.decoder.decode(data))
        return at


def text_logprobs(names: Names, said: Sequence[Said], place: Place | None = None) -> dict[str, Any]:
    """The same as completions tell it; `place` is behind the tokens told before, and moves on.

    The likeliest tokens include the chosen one, with the very same number: evaluation compares them.
    """
    place = place or Place()
    tops = [
        None if s.logprob is None else {names.unique(i): finite(p) for i, p in (*s.top, (s.id, s.logprob))}
        for s in said
    ]
    return {
        "tokens": [names.unique(s.id) for s in said],
        "token_logprobs": [None if s.logprob is None else finite(s.logprob) for s in said],
        "top_logprobs": tops,
        "text_offset": [place.take(names.data(s.id) or b"") for s in said],
    }


def finite(logprob: float | None) -> float:
    """JSON has no infinity: OpenAI's way to say that a token was impossible."""
    return -9999.0 if logprob is None or logprob == float("-inf") else logprob


def usage(num_prompt: int, num_completion: int, cached: int) -> dict[str, Any]:
    """Tokens read and written, and how many of those read had been computed before."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


class Form(NamedTuple):
    """How one endpoint writes: the names of its objects, and a choice, whole or in part."""

    prefix: str
    whole: str
    part: str
    choice: Callable[[int, str, Any, str | None], dict[str, Any]]
    delta: Callable[[int, str, Any, str | None], dict[str, Any]]
    logprobs: Callable[..., dict[str, Any]]
    opens: bool


def _chat(index: int, text: str, logprobs: Any, finish: str | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}


def _delta(index: int, text: str, logprobs: Any, finish: str | None) -> dict[str, Any]:
    delta = {} if finish else {"content": text}
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _text(index: int, text: str, logprobs: Any, finish: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


CHAT = Form("chatcmpl", "chat.completion", "chat.completion.chunk", _chat, _delta, chat_logprobs, True)
TEXT = Form("cmpl", "text_completion", "text_completion", _text, _text, text_logprobs, False)


def event(body: Any) -> bytes:
    """A server-sent event: one line of JSON and an empty line.

    Example:
        >>> event({"text": "two\\nlines"})
        b'data: {"text":"two\\\\nlines"}\\n\\n'
    """
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def chunk(form: Form, head: dict[str, Any], choices: list[dict[str, Any]], told: dict[str, Any]) -> bytes:
    """One event of a stream; `told` is `{"usage": ...}` where the client asked for it, and empty otherwise."""
    return event({**head, "object": form.part, "choices": choices, **told})


def opening(index: int) -> dict[str, Any]:
    """The first delta of a chat's choice."""
    return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}


def models(names: Sequence[str], created: int, context: int) -> dict[str, Any]:
    """The list a client's picker is built from."""
    return {"object": "list", "data": [model(name, created, context) for name in names]}


def model(name: str, created: int, context: int) -> dict[str, Any]:
    """One model of that list."""
    return {"id": name, "object": "model", "created": created, "owned_by": "slm_fn", "max_model_len": context}
