"""serve/routes/completions.py: both endpoints, with real clients and a real model."""

import json
import math

import httpx
import openai
import pytest
import torch
from langchain_openai import ChatOpenAI
from litestar.serialization import decode_json

from slm_fn.nn.gpt import ModelConfig
from slm_fn.pipeline.generation import generate
from slm_fn.pipeline.model_folder import GenerationConfig, Model
from slm_fn.serve.config import ServeConfig
from slm_fn.text.messages import Message
from slm_fn.text.training import bpe

MESSAGES = [{"role": "user", "content": "hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"yes": {"type": "boolean"}, "colour": {"enum": ["red", "blue"]}},
    "required": ["yes", "colour"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(rough):
    tokenizer = bpe.train(["hello world, how are you"] * 3, vocab_size=320)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        dim=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        ffn_dim=64,
        context=512,
    )
    return Model(config, rough(config), tokenizer, GenerationConfig())


@pytest.fixture(scope="module")
def server(serve, model):
    with serve(model, ServeConfig(name="rough", max_batch=4, max_queue=16)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30
    ) as openai_client:
        yield openai_client


def chat(client, **fields):
    return client.chat.completions.create(
        **{"model": "rough", "messages": MESSAGES, "max_tokens": 12, "seed": 5, **fields}
    )


def text(client, prompt, **fields):
    return client.completions.create(
        **{"model": "rough", "prompt": prompt, "max_tokens": 8, "seed": 5, **fields}
    )


def test_the_reply_equals_that_of_the_library_greedy_and_seeded(client, model):
    ids = generate.encode_chat(model, [Message("user", "hello")])
    for temperature, seed in ((0.0, 0), (1.0, 7), (1.0, -5)):
        config = generate.sampling_config(model, {"temperature": temperature})
        request = generate.make_request(model, ids, config, seed, 12)
        expected = "".join(delta.text for delta in generate.stream_text(model, request))
        assert (
            chat(client, temperature=temperature, seed=seed).choices[0].message.content == expected
        )
        parts = chat(client, temperature=temperature, seed=seed, stream=True)
        assert "".join(part.choices[0].delta.content or "" for part in parts) == expected


def test_choices_are_seeded_by_their_index(client):
    several = chat(client, n=3, seed=3, temperature=1.5).choices
    assert [choice.index for choice in several] == [0, 1, 2]
    again = chat(client, n=2, seed=3, temperature=1.5).choices
    assert [c.message.content for c in again] == [c.message.content for c in several[:2]]
    assert (
        chat(client, seed=3, temperature=1.5).choices[0].message.content
        == several[0].message.content
    )
    assert len({choice.message.content for choice in several}) == 3
    streamed = ["", "", ""]
    for part in chat(client, n=3, seed=3, temperature=1.5, stream=True):
        streamed[part.choices[0].index] += part.choices[0].delta.content or ""
    assert streamed == [choice.message.content for choice in several]


def test_chat_logprobs(client):
    complete = chat(client, temperature=0, logprobs=True, top_logprobs=3).choices[0]
    tokens = complete.logprobs.content
    assert (
        bytes(b for token in tokens for b in token.bytes or ()).decode("utf-8", "replace")
        == complete.message.content
    )
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(top.logprob for top in token.top_logprobs) <= 0
    parts = list(chat(client, temperature=0, logprobs=True, top_logprobs=3, stream=True))
    streamed = [
        token
        for part in parts
        if part.choices[0].logprobs
        for token in part.choices[0].logprobs.content
    ]
    assert streamed == tokens
    plain = chat(client, temperature=0, logprobs=True).choices[0].logprobs.content
    assert [(t.token, t.logprob, t.top_logprobs) for t in plain] == [
        (t.token, t.logprob, []) for t in tokens
    ]


def test_echo_returns_the_prompts_logprobs_as_lm_eval_reads_them(client, model):
    ids = generate.encode_text(model, "hello world, how")
    answer = text(
        client, [ids, ids[:3]], max_tokens=1, temperature=0, logprobs=1, echo=True, seed=1234
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    logprobs = answer.choices[0].logprobs
    logits = model.apply(model.params, torch.tensor([ids]))[0].float().log_softmax(-1)[0]
    expected = [logits[i, token].item() for i, token in enumerate(ids[1:])]
    assert logprobs.token_logprobs[0] is None
    assert logprobs.top_logprobs[0] is None
    assert len(logprobs.token_logprobs) == len(ids) + 1, "the new token is included"
    assert all(
        math.isclose(a, b, abs_tol=1e-4)
        for a, b in zip(logprobs.token_logprobs[1:-1], expected, strict=True)
    )
    greedy = [logits[i].argmax().item() == token for i, token in enumerate(ids[1:])]
    tops = zip(logprobs.token_logprobs[1:-1], logprobs.top_logprobs[1:-1], strict=True)
    assert [chosen == max(top.values()) for chosen, top in tops] == greedy
    assert answer.choices[0].text.startswith("hello world, how")
    assert logprobs.text_offset[:2] == [0, 0]
    assert answer.usage.prompt_tokens == len(ids) + 3
    no_tokens = text(client, ids, max_tokens=0, logprobs=0, echo=True)
    assert no_tokens.choices[0].text == "hello world, how"
    assert no_tokens.usage.completion_tokens == 0


def test_a_stream_has_the_same_text_offsets_as_the_complete_response(client):
    fields = {
        "prompt": "hello",
        "max_tokens": 40,
        "temperature": 1.5,
        "seed": 5,
        "logprobs": 1,
        "echo": True,
    }
    stops = ["\ufffd\ufffdzz", " w q", "h z"]  # so that some text is withheld for a while
    complete = text(client, **fields, stop=stops).choices[0]
    parts = [part.choices[0] for part in text(client, **fields, stop=stops, stream=True)]
    streamed = [part.logprobs for part in parts if part.logprobs]
    for name in ("tokens", "text_offset", "token_logprobs"):
        assert [one for logprobs in streamed for one in getattr(logprobs, name)] == getattr(
            complete.logprobs, name
        )
    assert complete.logprobs.text_offset == sorted(complete.logprobs.text_offset)
    assert complete.logprobs.text_offset[-1] <= len(complete.text)


def test_the_four_kinds_of_prompts_give_the_same_reply(client, model):
    ids = generate.encode_text(model, "hello")
    replies = [text(client, prompt, temperature=0) for prompt in ("hello", ["hello"], ids, [ids])]
    assert len({reply.choices[0].text for reply in replies}) == 1
    both = text(client, ["hello", "world"], temperature=0, n=2)
    assert len(both.choices) == 4
    assert both.choices[0].text == both.choices[1].text == replies[0].choices[0].text
    streamed = text(client, "hello", temperature=0, stream=True, echo=True)
    assert (
        "".join(part.choices[0].text for part in streamed) == "hello" + replies[0].choices[0].text
    )


@pytest.mark.parametrize("prompt", [[], [[]], [-1], [10**6], [True], "x" * 9000])
def test_an_invalid_prompt_is_rejected(client, prompt):
    with pytest.raises(openai.BadRequestError) as error:
        text(client, prompt)
    assert error.value.param == "prompt"


def test_a_schema_is_satisfied_at_any_temperature(client):
    response_format = {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
    }

    def reply(**fields):
        return chat(client, response_format=response_format, **fields).choices[0]

    for seed in range(3):
        complete = reply(temperature=2, seed=seed, max_tokens=200)
        assert complete.finish_reason == "stop"
        assert set(json.loads(complete.message.content)) == {"yes", "colour"}
    assert reply(max_tokens=3).finish_reason == "length"
    choice = chat(client, extra_body={"guided_choice": ["red", "blue"]}).choices[0]
    assert choice.message.content in ("red", "blue")


def test_logit_bias_and_bad_words_reach_the_sampler(client, model):
    token = model.tokenizer.encode("h")[0]
    logit_bias = {str(token): 100}
    biased = chat(client, logit_bias=logit_bias).choices[0]
    assert set(biased.message.content) == {"h"}
    extra_body = {"bad_words": ["h"]}
    without = chat(client, logit_bias=logit_bias, extra_body=extra_body, logprobs=True).choices[0]
    tokens = {each.token for each in without.logprobs.content}
    assert "h" not in tokens  # "hello" is another token


def num_cached_tokens(response):
    return response.usage.prompt_tokens_details.cached_tokens


def test_cached_prefixes_are_reported_in_the_usage(client):
    messages = [{"role": "system", "content": "hello world " * 100}, *MESSAGES]
    responses = [chat(client, messages=messages, max_tokens=1) for _ in range(2)]
    assert [num_cached_tokens(response) > 0 for response in responses] == [False, True]


def test_a_short_system_prompt_is_computed_once_and_changes_no_reply(client, model):
    num_cached = []
    for text in ("hello", "how are you"):
        messages = [Message("system", "be brief"), Message("user", text)]
        wire_messages = [{"role": each.role, "content": each.content} for each in messages]
        response = chat(client, messages=wire_messages, temperature=1, seed=2)
        num_cached.append(num_cached_tokens(response))
        ids = generate.encode_chat(model, messages)
        num_shared = generate.num_system_tokens(model, messages)
        config = generate.sampling_config(model, {"temperature": 1.0})
        request = generate.make_request(model, ids, config, 2, 12, num_shared=num_shared)
        deltas = generate.stream_text(model, request)
        expected = "".join(delta.text for delta in deltas)
        assert response.choices[0].message.content == expected
    assert num_cached == [0, num_shared]


def test_langchain_invokes_streams_and_parses(server):
    options = {"base_url": f"{server.url}/v1", "api_key": "none", "model": "rough"}
    llm = ChatOpenAI(**options, temperature=0, max_tokens=12)
    reply = llm.invoke("hello").content
    assert "".join(chunk.content for chunk in llm.stream("hello")) == reply
    longer = ChatOpenAI(**options, max_tokens=100)
    schema = {"title": "answer", **SCHEMA}
    structured = longer.with_structured_output(schema, method="json_schema")
    assert set(structured.invoke("hello")) == {"yes", "colour"}
    with_logprobs = llm.bind(logprobs=True, top_logprobs=2).invoke("hello")
    tokens = with_logprobs.response_metadata["logprobs"]["content"]
    assert all(len(token["top_logprobs"]) == 2 for token in tokens)
    with pytest.raises(openai.BadRequestError, match="n must be"):
        llm.bind(n=99).invoke("hello")


def test_paths_without_v1_and_a_fingerprint_of_the_weights(server, model):
    body = {"messages": MESSAGES, "max_tokens": 1}
    response = httpx.post(f"{server.url}/chat/completions", json=body).json()
    assert response["system_fingerprint"].startswith("fp_")


def test_a_body_is_parsed_once(server, monkeypatch):
    parsed = []

    def decode_and_count(body, **options):
        parsed.append(body)
        return decode_json(body, **options)

    monkeypatch.setattr("litestar.connection.request.decode_json", decode_and_count)
    body = {"messages": MESSAGES, "max_tokens": 1}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body).status_code == 200
    assert len(parsed) == 1
