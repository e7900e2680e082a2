"""The wire, inwards: what a request asks for, understood or refused by name.

Invariant: a parameter that would change the answer and is not implemented is an error, never ignored.
"""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple

import msgspec

from slm_fn.infer import sample
from slm_fn.infer.constrain import Grammar
from slm_fn.infer.sample import SampleConfig
from slm_fn.serve.errors import ApiError, invalid
from slm_fn.serve.requests import ChatMessage, ChatRequest, CompletionRequest, Settings, StructuredOutputs
from slm_fn.text.chat import Message

REFUSED: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False, 0),
    "tools": ([],),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "grammar": ("",),
    "json_schema": (),
    "guided_whitespace_pattern": (),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "prompt_logprobs": (0,),
    "chat_template": (),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "use_beam_search": (False,),
    "truncate_prompt_tokens": (),
}
"""Parameters that would change the answer and are not implemented, with the values that ask for nothing."""


MANY = 1024
"""Bad words, and tokens with a bias, of one request: every step of everybody goes through them."""


class Order(NamedTuple):
    """A request understood: what is asked for beside the prompt."""

    sampling: SampleConfig
    seed: int
    choices: int = 1
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    bad_words: tuple[str, ...] = ()
    grammar: Grammar | None = None
    logprobs: int | None = None
    echo: bool = False
    with_usage: bool = False


def refuse_unknown(request: Settings, fields: dict[str, Any]) -> None:
    """Refuse what would change the answer and is not implemented.

    Raises:
        ApiError: 400, naming the parameter.
    """
    for name, harmless in REFUSED.items():
        if name in request.__struct_fields__ or fields.get(name) is None or fields[name] in harmless:
            continue
        if name == "tools" and fields.get("tool_choice") == "none":
            continue
        raise ApiError(400, f"{name} is not supported by this server", "unsupported_parameter", name)


def understand(
    request: ChatRequest | CompletionRequest, defaults: SampleConfig, vocab_size: int, max_choices: int = 16
) -> Order:
    """Check a request and fill in the model's defaults.

    Raises:
        ApiError: 400, naming the parameter.
    """
    options, choices = request.stream_options, 1 if request.n is None else request.n
    if options is not None and not request.stream:
        raise invalid("stream_options is for streams; set stream to true", "stream_options")
    if not 1 <= choices <= max_choices:
        raise invalid(f"n must be between 1 and {max_choices}, got {choices}", "n")
    for name in ("logit_bias", "bad_words"):
        if len(getattr(request, name) or ()) > MANY:
            raise invalid(f"{name} takes up to {MANY}", name)
    sampling = _sampling(request, defaults, vocab_size)
    order = Order(
        sampling,
        secrets.randbits(48) if request.seed is None else request.seed,
        choices,
        stops=_stops(request.stop),
        bad_words=tuple(request.bad_words or ()),
        grammar=_grammar(request),
        with_usage=options is not None and options.include_usage,
    )
    if isinstance(request, ChatRequest):
        newer = request.max_completion_tokens
        limit = request.max_tokens if newer is None else newer
        return order._replace(max_tokens=_limit(limit, 1), logprobs=_top_logprobs(request))
    echo = bool(request.echo)
    limit = 16 if request.max_tokens is None else request.max_tokens  # OpenAI's default for this endpoint
    if request.logprobs is not None and not 0 <= request.logprobs <= 20:
        raise invalid(f"logprobs must be between 0 and 20, got {request.logprobs}", "logprobs")
    return order._replace(max_tokens=_limit(limit, 0 if echo else 1), logprobs=request.logprobs, echo=echo)


def _sampling(request: Settings, defaults: SampleConfig, vocab_size: int) -> SampleConfig:
    names = [name for name in SampleConfig.__struct_fields__ if name not in ("logit_bias", "bad_words")]
    given: dict[str, Any] = {name: value for name in names if (value := getattr(request, name, None)) is not None}
    if request.top_k == -1:
        given["top_k"] = 0  # vLLM's way to say: all
    if request.logit_bias:
        given["logit_bias"] = {_id(key, vocab_size): bias for key, bias in request.logit_bias.items()}
        if any(abs(bias) > 100 for bias in request.logit_bias.values()):
            raise invalid("logit_bias takes values from -100 to 100", "logit_bias")
    try:
        return sample.check(msgspec.structs.replace(defaults, **given))
    except ValueError as error:
        raise invalid(str(error), str(error).split()[0]) from None


def _id(key: str, vocab_size: int) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < vocab_size):
        raise invalid(f"logit_bias: {key[:20]!r} is no token id; they go from 0 to {vocab_size - 1}", "logit_bias")
    return int(key)


def _limit(limit: int | None, least: int) -> int | None:
    if limit is not None and limit < least:
        raise invalid(f"max_tokens must be at least {least}, got {limit}", "max_tokens")
    return limit


def _top_logprobs(request: ChatRequest) -> int | None:
    top = request.top_logprobs or 0
    if not 0 <= top <= 20:
        raise invalid(f"top_logprobs must be between 0 and 20, got {top}", "top_logprobs")
    if top and not request.logprobs:
        raise invalid("top_logprobs needs logprobs to be true", "top_logprobs")
    return top if request.logprobs else None


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > 4 or any(not s for s in stops):
        raise invalid("stop takes up to 4 strings, none of them empty", "stop")
    return stops


def _grammar(request: Settings) -> Grammar | None:
    form, other = request.response_format, request.structured_outputs or StructuredOutputs()
    asked = [
        Grammar("json_schema", other.json if request.guided_json is None else request.guided_json),
        Grammar("regex", other.regex if request.guided_regex is None else request.guided_regex),
        Grammar("choice", other.choice if request.guided_choice is None else request.guided_choice),
        Grammar("grammar", other.grammar if request.guided_grammar is None else request.guided_grammar),
    ]
    found = [grammar for grammar in asked if grammar.source is not None]
    if form is not None and form.type == "json_object":
        found.append(Grammar("json_object"))
    if form is not None and form.type == "json_schema":
        if form.json_schema is None:
            raise invalid("response_format of type json_schema needs json_schema.schema", "response_format")
        found.append(Grammar("json_schema", form.json_schema.schema))
    if len(found) > 1:
        raise invalid("ask for one of response_format, structured_outputs and guided_*", "response_format")
    return found[0] if found else None


def messages(asked: list[ChatMessage]) -> list[Message]:
    """The messages as the chat template takes them.

    Raises:
        ApiError: 400 for content that is no text.
    """
    return [Message("system" if m.role == "developer" else m.role, _content(m)) for m in asked]


def _content(message: ChatMessage) -> str:
    content = message.content
    if not isinstance(content, list):
        return content or ""
    wrong = next((part.type for part in content if part.type != "text"), None)
    if wrong is not None:
        raise invalid(f"content parts of type {wrong!r} are not supported; send text", "messages")
    return "".join(part.text for part in content)


def prompts(asked: str | list[Any]) -> list[str | list[int]]:
    """A completion's prompts, each a text or ids.

    Raises:
        ApiError: 400 for anything else.

    Example:
        >>> prompts("a"), prompts([1, 2]), prompts(["a", "b"]), prompts([[1], [2]])
        (['a'], [[1, 2]], ['a', 'b'], [[1], [2]])
    """
    several = [asked] if isinstance(asked, str) or (asked and all(type(item) is int for item in asked)) else asked
    for prompt in several:
        if not isinstance(prompt, str) and not (isinstance(prompt, list) and all(type(item) is int for item in prompt)):
            raise invalid("prompt is a string, a list of token ids, or a list of either", "prompt")
    if not several:
        raise invalid("prompt is empty", "prompt")
    return several
