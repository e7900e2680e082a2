"""serve/protocol/params.py, unsupported.py: requests are parsed, or rejected by parameter name."""

import msgspec
import pytest

from slm_fn.infer.constraints import Grammar
from slm_fn.infer.sampling import SampleConfig
from slm_fn.serve.protocol import params, prompts, unsupported
from slm_fn.serve.protocol.errors import ApiError
from slm_fn.serve.protocol.requests import ChatRequest, CompletionRequest

REQUIRED_FIELDS = {
    ChatRequest: {"messages": [{"role": "user", "content": "hello"}]},
    CompletionRequest: {"prompt": "hello"},
}


def parse(request_type=ChatRequest, **fields):
    request = msgspec.convert({**REQUIRED_FIELDS[request_type], **fields}, request_type)
    unsupported.reject_unsupported(request, fields)
    return params.parse_request(request, SampleConfig(), vocab_size=100)


def test_request_fields_replace_the_models_defaults():
    assert parse().sampling == SampleConfig()
    sampling = parse(
        temperature=0, top_p=0.5, top_k=3, min_p=0.1, repetition_penalty=1.2, logit_bias={"7": -3}
    ).sampling
    assert sampling == SampleConfig(0.0, 3, 0.5, 0.1, 1.2, logit_bias={7: -3.0})
    assert parse(top_k=-1).sampling.top_k == 0


def test_max_completion_tokens_wins_and_stops_are_a_tuple():
    assert parse(max_tokens=9, max_completion_tokens=2).max_tokens == 2
    assert parse(stop="x").stops == ("x",)
    assert parse().max_tokens is None
    assert parse(CompletionRequest).max_tokens == 16
    assert parse(CompletionRequest, max_tokens=0, echo=True).max_tokens == 0


def test_logprobs_of_both_endpoints():
    assert parse().top_logprobs is None
    assert parse(logprobs=False).top_logprobs is None
    assert parse(logprobs=True).top_logprobs == 0
    assert parse(logprobs=True, top_logprobs=20).top_logprobs == 20
    assert parse(CompletionRequest, logprobs=5).top_logprobs == 5


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar("json_object")),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "null"}},
                }
            },
            Grammar("json_schema", {"type": "null"}),
        ),
        ({"guided_choice": ["a", "b"]}, Grammar("choice", ["a", "b"])),
        ({"structured_outputs": {"regex": "a+"}}, Grammar("regex", "a+")),
        ({"guided_grammar": "start: A"}, Grammar("grammar", "start: A")),
    ],
)
def test_grammars_under_their_three_names(fields, grammar):
    assert parse(**fields).grammar == grammar


def test_fields_without_effect_are_accepted():
    parse(
        user="me",
        metadata={"a": "b"},
        store=True,
        n=1,
        logprobs=False,
        brand_new_field=3,
        tools=[],
        best_of=1,
    )
    parse(tools=[{"type": "function"}], tool_choice="none")


@pytest.mark.parametrize(
    ("request_type", "field"),
    [
        (ChatRequest, {"tools": [1]}),
        (ChatRequest, {"min_tokens": 1}),
        (ChatRequest, {"echo": True}),
        (CompletionRequest, {"suffix": "x"}),
        (CompletionRequest, {"best_of": 2}),
        (CompletionRequest, {"max_tokens": 0}),
        (CompletionRequest, {"logprobs": 21}),
        (ChatRequest, {"n": 0}),
        (ChatRequest, {"logit_bias": {"100": 1}}),
        (ChatRequest, {"logit_bias": {"1": 101}}),
        (ChatRequest, {"presence_penalty": 1e9}),
        (ChatRequest, {"response_format": {"type": "json_object"}, "guided_regex": "a"}),
    ],
)
def test_an_invalid_field_is_rejected_by_name(request_type, field):
    with pytest.raises(ApiError) as error:
        parse(request_type, **field)
    assert error.value.status == 400
    assert error.value.param == next(iter(field))


@pytest.mark.parametrize("prompt", [[], [1.5], [True], [[1], [None]], [["a"]]])
def test_an_invalid_prompt_is_rejected(prompt):
    with pytest.raises(ApiError):
        prompts.parse_prompts(prompt)
