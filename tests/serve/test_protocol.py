"""serve/protocol.py: requests understood or refused by name, and answers in OpenAI's shape."""

import json

import pytest

from slm_fn.infer.sample import SampleConfig
from slm_fn.serve import protocol
from slm_fn.serve.protocol import ApiError


def order(**fields):
    body = json.dumps({"messages": [{"role": "user", "content": "hello"}], **fields}).encode()
    return protocol.understand(protocol.decode(body), SampleConfig())


def test_defaults_are_the_models_and_settings_replace_them():
    assert order().sampling == SampleConfig()
    told = order(temperature=0, top_p=0.5, top_k=3, min_p=0.1, repetition_penalty=1.2, seed=4).sampling
    assert told == SampleConfig(0.0, 3, 0.5, 0.1, 1.2)


def test_the_newer_limit_wins_and_stops_are_a_tuple():
    assert order(max_tokens=9, max_completion_tokens=2).max_tokens == 2
    assert order(stop="x").stops == ("x",)
    assert order().max_tokens is None


def test_what_changes_nothing_is_let_pass():
    order(user="me", metadata={"a": "b"}, store=True, n=1, logprobs=False, brand_new_field=3)


@pytest.mark.parametrize("field", [{"n": 2}, {"logprobs": True}, {"logit_bias": {"5": 1}}, {"presence_penalty": 0.5}])
def test_what_would_change_the_answer_is_refused_by_name(field):
    with pytest.raises(ApiError) as error:
        order(**field)
    assert error.value.status == 400
    assert error.value.param == next(iter(field))


def test_events_are_one_line_of_json():
    event = protocol.event({"text": "two\nlines"})
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2
    assert json.loads(event[6:]) == {"text": "two\nlines"}


def test_errors_have_openais_shape():
    body = ApiError(429, "wait", "queue_full").body()["error"]
    assert body.keys() == {"message", "type", "param", "code"}
