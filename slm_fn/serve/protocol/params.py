"""The parameters of a generation: a request's checked fields and the model's defaults.

Invariant: a value that is out of range is an error that names its parameter; none is corrected.
"""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple

import msgspec

from slm_fn.infer import sampling
from slm_fn.infer.constraints import Grammar
from slm_fn.infer.sampling import SampleConfig
from slm_fn.serve.protocol.errors import invalid_request
from slm_fn.serve.protocol.requests import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    StructuredOutputs,
)

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default of /v1/completions
MAX_TOP_LOGPROBS = 20
MAX_STOPS = 4
MAX_LOGIT_BIAS = 100.0
MAX_LIST_LENGTH = 1024
"""Bad words, or tokens with a bias, of one request: every step of the batch processes them all."""


class GenerationParams(NamedTuple):
    """The checked parameters of a request, without its prompt.

    Attributes:
        sampling: filters and penalties; the words of `bad_words` are not yet in it.
        seed: seed of the first choice; each further choice has its own, derived from it.
        num_choices: replies per prompt.
        max_tokens: upper bound of a reply's tokens; None means as many as the context holds.
        stops: strings before which the reply ends.
        bad_words: words that the reply must not contain.
        grammar: the constraint on the reply.
        top_logprobs: alternatives returned per token; None returns no log probabilities at all.
        echo: whether the reply begins with the prompt.
        include_usage: whether a stream ends with the usage.
    """

    sampling: SampleConfig
    seed: int
    num_choices: int = 1
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    bad_words: tuple[str, ...] = ()
    grammar: Grammar | None = None
    top_logprobs: int | None = None
    echo: bool = False
    include_usage: bool = False


def parse_request(
    request: ChatRequest | CompletionRequest,
    defaults: SampleConfig,
    vocab_size: int,
    max_choices: int = 16,
) -> GenerationParams:
    """Checks the fields of a request and fills in the model's defaults.

    Args:
        request: a decoded body.
        defaults: sampling settings of the model, for fields that the request leaves out.
        vocab_size: token ids of `logit_bias` must be below it.
        max_choices: upper bound of `n`.

    Returns:
        The parameters of the generation.

    Raises:
        ApiError: 400, naming the parameter.
    """
    options = request.stream_options
    if options is not None and not request.stream:
        raise invalid_request("stream_options requires stream to be true", "stream_options")
    num_choices = 1 if request.n is None else request.n
    if not 1 <= num_choices <= max_choices:
        raise invalid_request(f"n must be between 1 and {max_choices}, got {num_choices}", "n")
    _check_list_lengths(request)
    params = GenerationParams(
        sampling=_parse_sampling(request, defaults, vocab_size),
        seed=secrets.randbits(48) if request.seed is None else request.seed,
        num_choices=num_choices,
        stops=_parse_stops(request.stop),
        bad_words=tuple(request.bad_words or ()),
        grammar=_parse_grammar(request),
        include_usage=options is not None and options.include_usage,
    )
    if isinstance(request, ChatRequest):
        return _add_chat_fields(params, request)
    return _add_completion_fields(params, request)


def _add_chat_fields(params: GenerationParams, request: ChatRequest) -> GenerationParams:
    limit = request.max_completion_tokens  # the newer name of max_tokens
    if limit is None:
        limit = request.max_tokens
    _check_max_tokens(limit, at_least=1)
    return params._replace(max_tokens=limit, top_logprobs=_parse_top_logprobs(request))


def _add_completion_fields(
    params: GenerationParams, request: CompletionRequest
) -> GenerationParams:
    echo = bool(request.echo)
    logprobs = request.logprobs
    if logprobs is not None and not 0 <= logprobs <= MAX_TOP_LOGPROBS:
        raise invalid_request(
            f"logprobs must be between 0 and {MAX_TOP_LOGPROBS}, got {logprobs}", "logprobs"
        )
    limit = DEFAULT_COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
    _check_max_tokens(limit, at_least=0 if echo else 1)
    return params._replace(max_tokens=limit, top_logprobs=logprobs, echo=echo)


def _check_list_lengths(request: GenerationRequest) -> None:
    for name in ("logit_bias", "bad_words"):
        if len(getattr(request, name) or ()) > MAX_LIST_LENGTH:
            raise invalid_request(f"{name} may have at most {MAX_LIST_LENGTH} entries", name)


def _parse_sampling(
    request: GenerationRequest, defaults: SampleConfig, vocab_size: int
) -> SampleConfig:
    changes: dict[str, Any] = {}
    for name in SampleConfig.__struct_fields__:
        value = getattr(request, name, None)
        if name not in ("logit_bias", "bad_words") and value is not None:
            changes[name] = value
    if request.top_k == -1:
        changes["top_k"] = 0  # vLLM writes -1 for "no limit"
    if request.logit_bias:
        changes["logit_bias"] = _parse_logit_bias(request.logit_bias, vocab_size)
    try:
        return sampling.check(msgspec.structs.replace(defaults, **changes))
    except ValueError as error:
        message = str(error)
        param = message.split()[0]
        raise invalid_request(message, param) from None


def _parse_logit_bias(logit_bias: dict[str, float], vocab_size: int) -> dict[int, float]:
    parsed = {_parse_token_id(key, vocab_size): bias for key, bias in logit_bias.items()}
    if any(abs(bias) > MAX_LOGIT_BIAS for bias in parsed.values()):
        message = f"logit_bias must be between -{MAX_LOGIT_BIAS:g} and {MAX_LOGIT_BIAS:g}"
        raise invalid_request(message, "logit_bias")
    return parsed


def _parse_token_id(key: str, vocab_size: int) -> int:
    is_number = key.isascii() and key.isdecimal() and len(key) < 10
    if not is_number or int(key) >= vocab_size:
        message = f"{key[:20]!r} is not a token id; token ids are 0 to {vocab_size - 1}"
        raise invalid_request(f"logit_bias: {message}", "logit_bias")
    return int(key)


def _check_max_tokens(limit: int | None, at_least: int) -> None:
    if limit is not None and limit < at_least:
        raise invalid_request(f"max_tokens must be at least {at_least}, got {limit}", "max_tokens")


def _parse_top_logprobs(request: ChatRequest) -> int | None:
    top = request.top_logprobs or 0
    if not 0 <= top <= MAX_TOP_LOGPROBS:
        message = f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}, got {top}"
        raise invalid_request(message, "top_logprobs")
    if top and not request.logprobs:
        raise invalid_request("top_logprobs requires logprobs to be true", "top_logprobs")
    return top if request.logprobs else None


def _parse_stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOPS or "" in stops:
        raise invalid_request(f"stop takes up to {MAX_STOPS} strings, none of them empty", "stop")
    return stops


def _parse_grammar(request: GenerationRequest) -> Grammar | None:
    outputs = request.structured_outputs or StructuredOutputs()
    sources = {
        "json_schema": _first_given(request.guided_json, outputs.json),
        "regex": _first_given(request.guided_regex, outputs.regex),
        "choice": _first_given(request.guided_choice, outputs.choice),
        "grammar": _first_given(request.guided_grammar, outputs.grammar),
    }
    grammars = [Grammar(kind, source) for kind, source in sources.items() if source is not None]
    response_format = request.response_format
    if response_format is not None and response_format.type == "json_object":
        grammars.append(Grammar("json_object"))
    if response_format is not None and response_format.type == "json_schema":
        if response_format.json_schema is None:
            message = "response_format of type json_schema requires json_schema.schema"
            raise invalid_request(message, "response_format")
        grammars.append(Grammar("json_schema", response_format.json_schema.schema))
    if len(grammars) > 1:
        message = "set only one of response_format, structured_outputs and guided_*"
        raise invalid_request(message, "response_format")
    return grammars[0] if grammars else None


def _first_given(preferred: Any, other: Any) -> Any:
    return other if preferred is None else preferred
