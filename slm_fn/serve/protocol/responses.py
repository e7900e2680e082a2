"""The bodies of responses: choices, stream chunks, usage and model lists in OpenAI's format.

Invariant: the deltas of a stream, joined, are the complete reply; only the usage chunk is without
choices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from slm_fn.infer.request import Finish
from slm_fn.serve.protocol.logprobs import (
    TextOffset,
    TokenFormatter,
    TokenLogprob,
    chat_logprobs,
    completion_logprobs,
)

DONE_EVENT = b"data: [DONE]\n\n"
PING_COMMENT = b": ping\n\n"

Body = dict[str, Any]
ChoiceMaker = Callable[[int, str, Body | None, Finish | None], Body]
LogprobsMaker = Callable[[TokenFormatter, Sequence[TokenLogprob], TextOffset], Body]


class OutputDelta(NamedTuple):
    """What one step adds to a choice.

    Attributes:
        choice_index: number of the choice in its response.
        text: new text.
        logprobs: the tokens behind the text.
        num_tokens: tokens generated so far.
        finish: in the last delta, why the choice ended.
        num_cached_tokens: tokens of the prompt that did not need to be computed.
    """

    choice_index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    num_tokens: int = 0
    finish: Finish | None = None
    num_cached_tokens: int = 0


def join_deltas(deltas: Sequence[OutputDelta]) -> OutputDelta:
    """Returns the deltas of one choice as a single one.

    Example:
        >>> joined = join_deltas([OutputDelta(0, "a"), OutputDelta(0, "b", finish="stop")])
        >>> joined.text, joined.finish
        ('ab', 'stop')
    """
    text = "".join(delta.text for delta in deltas)
    logprobs: list[TokenLogprob] = []
    for delta in deltas:
        logprobs.extend(delta.logprobs)
    return deltas[-1]._replace(text=text, logprobs=tuple(logprobs))


def usage(num_prompt: int, num_completion: int, num_cached: int) -> Body:
    """Returns the numbers of tokens read and generated, and how many of those read were cached."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
        "prompt_tokens_details": {"cached_tokens": num_cached},
    }


class EndpointFormat(NamedTuple):
    """How one endpoint writes its responses.

    Attributes:
        id_prefix: what the ids of its responses begin with.
        object_name: `object` of a complete response.
        chunk_object_name: `object` of a stream's chunk.
        make_choice: a complete choice from index, text, logprobs and finish.
        make_delta_choice: the same of one delta.
        make_logprobs: the `logprobs` of a choice.
        has_role_delta: whether a stream begins with a delta that names the role.
    """

    id_prefix: str
    object_name: str
    chunk_object_name: str
    make_choice: ChoiceMaker
    make_delta_choice: ChoiceMaker
    make_logprobs: LogprobsMaker
    has_role_delta: bool


def _chat_choice(index: int, text: str, logprobs: Body | None, finish: Finish | None) -> Body:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}


def _chat_delta(index: int, text: str, logprobs: Body | None, finish: Finish | None) -> Body:
    delta = {} if finish else {"content": text}
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _text_choice(index: int, text: str, logprobs: Body | None, finish: Finish | None) -> Body:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


CHAT_FORMAT = EndpointFormat(
    id_prefix="chatcmpl",
    object_name="chat.completion",
    chunk_object_name="chat.completion.chunk",
    make_choice=_chat_choice,
    make_delta_choice=_chat_delta,
    make_logprobs=chat_logprobs,
    has_role_delta=True,
)
COMPLETION_FORMAT = EndpointFormat(
    id_prefix="cmpl",
    object_name="text_completion",
    chunk_object_name="text_completion",
    make_choice=_text_choice,
    make_delta_choice=_text_choice,
    make_logprobs=completion_logprobs,
    has_role_delta=False,
)


def encode_event(body: Any) -> bytes:
    """Returns a server-sent event: one line of JSON and an empty line.

    Example:
        >>> encode_event({"text": "two\\nlines"})
        b'data: {"text":"two\\\\nlines"}\\n\\n'
    """
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def encode_chunk(
    endpoint: EndpointFormat, head: Body, choices: Sequence[Body], usage_field: Body
) -> bytes:
    """Returns one event of a stream.

    Args:
        endpoint: the format of the endpoint.
        head: the fields that all chunks of a stream have in common.
        choices: the deltas.
        usage_field: `{"usage": ...}` if the client asked for the usage, else empty.
    """
    body = {**head, "object": endpoint.chunk_object_name, "choices": choices, **usage_field}
    return encode_event(body)


def role_delta(index: int) -> Body:
    """Returns the first delta of a chat's choice."""
    delta = {"role": "assistant", "content": ""}
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def model_list(names: Sequence[str], created: int, context: int) -> Body:
    """Returns the list of `model` objects of OpenAI's `/v1/models`."""
    cards = [model_object(name, created, context) for name in names]
    return {"object": "list", "data": cards}


def model_object(name: str, created: int, context: int) -> Body:
    """Returns the `model` object of OpenAI's `/v1/models`.

    Args:
        name: the model's id.
        created: Unix time in seconds.
        context: the model's context length in tokens.
    """
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "slm_fn",
        "max_model_len": context,
    }
