"""serve/protocol.py: requests understood or refused by name."""

import msgspec
import pytest

from slm_fn.infer.constrain import Grammar
from slm_fn.infer.sample import SampleConfig
from slm_fn.serve import protocol
from slm_fn.serve.errors import ApiError
from slm_fn.serve.requests import ChatRequest, CompletionRequest


def order(kind=ChatRequest, **fields):
    given = {"messages": [{"role": "user", "content": "hello"}]} if kind is ChatRequest else {"prompt": "hello"}
    request = msgspec.convert({**given, **fields}, kind)
    protocol.refuse_unknown(request, fields)
    return protocol.understand(request, SampleConfig(), vocab_size=100)


def test_defaults_are_the_models_and_settings_replace_them():
    assert order().sampling == SampleConfig()
    told = order(temperature=0, top_p=0.5, top_k=3, min_p=0.1, repetition_penalty=1.2, logit_bias={"7": -3}).sampling
    assert told == SampleConfig(0.0, 3, 0.5, 0.1, 1.2, logit_bias={7: -3.0})
    assert order(top_k=-1).sampling.top_k == 0


def test_the_newer_limit_wins_and_stops_are_a_tuple():
    assert order(max_tokens=9, max_completion_tokens=2).max_tokens == 2
    assert order(stop="x").stops == ("x",)
    assert order().max_tokens is None
    assert order(CompletionRequest).max_tokens == 16
    assert order(CompletionRequest, max_tokens=0, echo=True).max_tokens == 0


def test_logprobs_of_both_endpoints():
    assert order().logprobs is None
    assert order(logprobs=False).logprobs is None
    assert order(logprobs=True).logprobs == 0
    assert order(logprobs=True, top_logprobs=20).logprobs == 20
    assert order(CompletionRequest, logprobs=5).logprobs == 5


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar("json_object")),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "null"}}}},
            Grammar("json_schema", {"type": "null"}),
        ),
        ({"guided_choice": ["a", "b"]}, Grammar("choice", ["a", "b"])),
        ({"structured_outputs": {"regex": "a+"}}, Grammar("regex", "a+")),
        ({"guided_grammar": "start: A"}, Grammar("grammar", "start: A")),
    ],
)
def test_forms_by_their_three_names(fields, grammar):
    assert order(**fields).grammar == grammar


def test_what_changes_nothing_is_let_pass():
    order(user="me", metadata={"a": "b"}, store=True, n=1, logprobs=False, brand_new_field=3, tools=[], best_of=1)
    order(tools=[{"type": "function"}], tool_choice="none")


@pytest.mark.parametrize(
    ("kind", "field"),
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
def test_what_cannot_be_done_is_refused_by_name(kind, field):
    with pytest.raises(ApiError) as error:
        order(kind, **field)
    assert error.value.status == 400
    assert error.value.param == next(iter(field))


@pytest.mark.parametrize("prompt", [[], [1.5], [True], [[1], [None]], [["a"]]])
def test_what_is_no_prompt(prompt):
    with pytest.raises(ApiError):
        protocol.prompts(prompt)
