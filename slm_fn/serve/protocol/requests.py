"""The bodies of requests: OpenAI's fields, and vLLM's names for what OpenAI does not have.

Invariant: these structs generate the OpenAPI document; every field in them is implemented.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class ContentPart(msgspec.Struct, frozen=True):
    """One part of a message's content; only parts of type `text` are supported."""

    type: str
    text: str = ""


class ChatMessageParam(msgspec.Struct, frozen=True):
    """A message as a client sends it: content is a string or a list of text parts."""

    role: str
    content: str | list[ContentPart] | None = None


class StreamOptions(msgspec.Struct, frozen=True):
    """What a stream contains in addition to the text."""

    include_usage: bool = False


class JsonSchema(msgspec.Struct, frozen=True):
    """A named JSON schema. Schemas are always enforced, so `strict` has no effect."""

    schema: dict[str, Any]
    name: str = "reply"
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """The format that the reply must have: text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None


class StructuredOutputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """vLLM's form of a constraint on the reply; at most one field may be set."""

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of both completion endpoints.

    Unknown fields are accepted, because clients add new ones often; `unsupported.py` rejects those
    that would change the reply.
    """

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


class ChatRequest(GenerationRequest, frozen=True, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessageParam]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    """`POST /v1/completions`: the prompt is a text, a list of token ids, or a list of either."""

    prompt: str | list[Any]
    echo: bool | None = None
    logprobs: int | None = None


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /tokenize`: a text as vLLM's `prompt` or llama.cpp's `content`, or messages."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    messages: list[ChatMessageParam] | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /detokenize`."""

    tokens: list[int]
    model: str | None = None
