"""The wire: OpenAI's chat requests, replies, stream chunks and errors as structs.

Invariant: a parameter that would change the answer and is not implemented is an error, never ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from slm_fn.infer import sample
from slm_fn.infer.sample import SampleConfig
from slm_fn.text.chat import Message

REFUSED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "grammar": ("",),
    "json_schema": (),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "typical_p": (1,),
}
"""Parameters that would change the answer and are not implemented, with the values that ask for nothing."""


class ApiError(Exception):
    """An error a client is told, in OpenAI's shape."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict[str, Any]:
        """`{"error": {message, type, param, code}}`."""
        kinds = {401: "authentication_error", 429: "rate_limit_error", 503: "overloaded_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class TextPart(msgspec.Struct, frozen=True):
    """One part of a message's content."""

    type: str
    text: str = ""


class ChatMessage(msgspec.Struct, frozen=True):
    """A message as clients send it: content is a string or a list of text parts."""

    role: str
    content: str | list[TextPart] | None = None


class StreamOptions(msgspec.Struct, frozen=True):
    """What a stream should tell beside the text."""

    include_usage: bool = False


class ChatRequest(msgspec.Struct, frozen=True):
    """`POST /v1/chat/completions`; unknown fields are let pass, since clients gain new ones every month."""

    messages: list[ChatMessage]
    model: str | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None


class Order(msgspec.Struct, frozen=True):
    """A request understood: what the worker is asked to do."""

    messages: tuple[Message, ...]
    sampling: SampleConfig
    max_tokens: int | None
    stops: tuple[str, ...]
    seed: int | None


def decode(body: bytes) -> ChatRequest:
    """Read a request.

    Raises:
        ApiError: 400, naming the parameter that is wrong or not implemented.
    """
    try:
        request, fields = msgspec.json.decode(body, type=ChatRequest), msgspec.json.decode(body)
    except msgspec.ValidationError as error:
        where = str(error).partition("`$.")[2].partition("`")[0] or None
        raise ApiError(400, str(error), "invalid_value", where) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", "invalid_json") from None
    for name, harmless in REFUSED.items():
        if fields.get(name) is not None and fields[name] not in harmless:
            raise refusal(name)
    return request


def refusal(name: str) -> ApiError:
    """The error for a parameter that would change the answer and is not implemented."""
    return ApiError(400, f"{name} is not supported by this server", "unsupported_parameter", name)


def understand(request: ChatRequest, defaults: SampleConfig) -> Order:
    """Check a request and fill in the model's defaults.

    Raises:
        ApiError: 400, naming the parameter.
    """
    if request.tools and request.tool_choice != "none":
        raise refusal("tools")
    given = {name: value for name in SampleConfig.__struct_fields__ if (value := getattr(request, name)) is not None}
    if request.top_k == -1:
        given["top_k"] = 0  # vLLM's way to say: all
    try:
        sampling = sample.check(msgspec.structs.replace(defaults, **given))
    except ValueError as error:
        raise ApiError(400, str(error), "invalid_value", str(error).split()[0]) from None
    limit = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    if limit is not None and limit < 1:
        raise ApiError(400, f"max_tokens must be at least 1, got {limit}", "invalid_value", "max_tokens")
    return Order(tuple(map(_message, request.messages)), sampling, limit, _stops(request.stop), request.seed)


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > 4 or any(not s for s in stops):
        raise ApiError(400, "stop takes up to 4 strings, none of them empty", "invalid_value", "stop")
    return stops


def _message(message: ChatMessage) -> Message:
    content = message.content
    if isinstance(content, list):
        wrong = next((part.type for part in content if part.type != "text"), None)
        if wrong is not None:
            raise ApiError(
                400, f"content parts of type {wrong!r} are not supported; send text", "invalid_value", "messages"
            )
        content = "".join(part.text for part in content)
    return Message("system" if message.role == "developer" else message.role, content or "")


def usage(num_prompt: int, num_completion: int) -> dict[str, int]:
    """Tokens read and written."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
    }


def reply(head: dict[str, Any], text: str, finish: str, used: dict[str, int]) -> dict[str, Any]:
    """The whole answer in one object."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return {**head, "object": "chat.completion", "choices": [choice], "usage": used}


def chunk(head: dict[str, Any], delta: dict[str, str], finish: str | None = None, with_usage: bool = False) -> bytes:
    """One event of a stream."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    body = {**head, "object": "chat.completion.chunk", "choices": [choice]}
    return event({**body, "usage": None} if with_usage else body)


def last_chunk(head: dict[str, Any], used: dict[str, int]) -> bytes:
    """The event that only tells the usage."""
    return event({**head, "object": "chat.completion.chunk", "choices": [], "usage": used})


def event(body: Any) -> bytes:
    """A server-sent event: one line of JSON and an empty line."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def models(names: Sequence[str], created: int, context: int) -> dict[str, Any]:
    """The list a client's picker is built from."""
    return {"object": "list", "data": [model(name, created, context) for name in names]}


def model(name: str, created: int, context: int) -> dict[str, Any]:
    """One model of that list."""
    return {"id": name, "object": "model", "created": created, "owned_by": "slm_fn", "max_model_len": context}
