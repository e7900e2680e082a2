"""The wire, inwards: OpenAI's requests as structs, with vLLM's names for what OpenAI has none.

Invariant: these structs are also the OpenAPI document; a field that stands here is implemented.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


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


class JsonSchema(msgspec.Struct, frozen=True):
    """A named JSON schema; `strict` is how it always is here."""

    schema: dict[str, Any]
    name: str = "reply"
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """What the reply is made to be: text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None


class StructuredOutputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The same by vLLM's names; one of them at a time."""

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What both endpoints take; unknown fields are let pass, since clients gain new ones every month."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    bad_words: list[str] | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None


class ChatRequest(Settings, frozen=True, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class CompletionRequest(Settings, frozen=True, kw_only=True):
    """`POST /v1/completions`: a text, ids, or a list of either."""

    prompt: str | list[Any]
    echo: bool | None = None
    logprobs: int | None = None


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /tokenize`: a text under vLLM's name (`prompt`) or llama.cpp's (`content`), or messages."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /detokenize`."""

    tokens: list[int]
    model: str | None = None
