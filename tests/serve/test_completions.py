"""serve/completions.py: both endpoints by real clients, a real model: logprobs, choices, echo, seeds, forms, usage."""

import json
import math

import httpx
import openai
import pytest
import torch
from langchain_openai import ChatOpenAI

from slm_fn.nn.gpt import ModelConfig
from slm_fn.pipeline import talk
from slm_fn.pipeline.model import Generation, Model
from slm_fn.serve.config import ServeConfig
from slm_fn.text import bpe
from slm_fn.text.chat import Message

ASK = [{"role": "user", "content": "hello"}]
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
        vocab_size=tokenizer.vocab_size, dim=32, num_layers=2, num_heads=4, num_kv_heads=2, ffn_dim=64, context=512
    )
    return Model(config, rough(config), tokenizer, Generation())


@pytest.fixture(scope="module")
def server(serve, model):
    with serve(model, ServeConfig(name="rough", max_batch=4, max_queue=16)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30) as made:
        yield made


def chat(client, **asked):
    return client.chat.completions.create(**{"model": "rough", "messages": ASK, "max_tokens": 12, "seed": 5, **asked})


def text(client, prompt, **asked):
    return client.completions.create(**{"model": "rough", "prompt": prompt, "max_tokens": 8, "seed": 5, **asked})


def test_the_reply_is_the_models_own_greedy_and_seeded(client, model):
    ids = talk.chat_ids(model, [Message("user", "hello")])
    for temperature, seed in ((0.0, 0), (1.0, 7), (1.0, -5)):
        config = talk.sampling(model, {"temperature": temperature})
        own = "".join(piece.text for piece in talk.write(model, ids, config, seed, 12))
        assert chat(client, temperature=temperature, seed=seed).choices[0].message.content == own
        parts = chat(client, temperature=temperature, seed=seed, stream=True)
        assert "".join(part.choices[0].delta.content or "" for part in parts) == own


def test_choices_are_seeded_by_their_number(client):
    several = chat(client, n=3, seed=3, temperature=1.5).choices
    assert [choice.index for choice in several] == [0, 1, 2]
    again = chat(client, n=2, seed=3, temperature=1.5).choices
    assert [c.message.content for c in again] == [c.message.content for c in several[:2]]
    assert chat(client, seed=3, temperature=1.5).choices[0].message.content == several[0].message.content
    assert len({choice.message.content for choice in several}) == 3
    streamed = ["", "", ""]
    for part in chat(client, n=3, seed=3, temperature=1.5, stream=True):
        streamed[part.choices[0].index] += part.choices[0].delta.content or ""
    assert streamed == [choice.message.content for choice in several]


def test_chat_logprobs(client):
    whole = chat(client, temperature=0, logprobs=True, top_logprobs=3).choices[0]
    said = whole.logprobs.content
    assert bytes(b for token in said for b in token.bytes or ()).decode("utf-8", "replace") == whole.message.content
    for token in said:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(top.logprob for top in token.top_logprobs) <= 0
    parts = list(chat(client, temperature=0, logprobs=True, top_logprobs=3, stream=True))
    streamed = [token for part in parts if part.choices[0].logprobs for token in part.choices[0].logprobs.content]
    assert streamed == said
    plain = chat(client, temperature=0, logprobs=True).choices[0].logprobs.content
    assert [(t.token, t.logprob, t.top_logprobs) for t in plain] == [(t.token, t.logprob, []) for t in said]


def test_echo_tells_the_prompts_logprobs_as_lm_eval_reads_them(client, model):
    ids = talk.text_ids(model, "hello world, how")
    answer = text(client, [ids, ids[:3]], max_tokens=1, temperature=0, logprobs=1, echo=True, seed=1234)
    assert [choice.index for choice in answer.choices] == [0, 1]
    told = answer.choices[0].logprobs
    logits = model.apply(model.params, torch.tensor([ids]))[0].float().log_softmax(-1)[0]
    own = [logits[i, token].item() for i, token in enumerate(ids[1:])]
    assert told.token_logprobs[0] is None
    assert told.top_logprobs[0] is None
    assert len(told.token_logprobs) == len(ids) + 1, "the new token is there as well"
    assert all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(told.token_logprobs[1:-1], own, strict=True))
    greedy = [logits[i].argmax().item() == token for i, token in enumerate(ids[1:])]
    tops = zip(told.token_logprobs[1:-1], told.top_logprobs[1:-1], strict=True)
    assert [own == max(top.values()) for own, top in tops] == greedy
    assert answer.choices[0].text.startswith("hello world, how")
    assert told.text_offset[:2] == [0, 0]
    assert answer.usage.prompt_tokens == len(ids) + 3
    none = text(client, ids, max_tokens=0, logprobs=0, echo=True)
    assert none.choices[0].text == "hello world, how"
    assert none.usage.completion_tokens == 0


def test_a_stream_tells_the_same_places_as_the_whole(client):
    asked = {"prompt": "hello", "max_tokens": 40, "temperature": 1.5, "seed": 5, "logprobs": 1, "echo": True}
    stops = ["\ufffd\ufffdzz", " w q", "h z"]  # some text is held back
    whole = text(client, **asked, stop=stops).choices[0]
    parts = [part.choices[0] for part in text(client, **asked, stop=stops, stream=True)]
    told = [part.logprobs for part in parts if part.logprobs]
    for name in ("tokens", "text_offset", "token_logprobs"):
        assert [one for part in told for one in getattr(part, name)] == getattr(whole.logprobs, name)
    assert whole.logprobs.text_offset == sorted(whole.logprobs.text_offset)
    assert whole.logprobs.text_offset[-1] <= len(whole.text)


def test_prompts_of_four_kinds_say_the_same(client, model):
    ids = talk.text_ids(model, "hello")
    replies = [text(client, prompt, temperature=0) for prompt in ("hello", ["hello"], ids, [ids])]
    assert len({reply.choices[0].text for reply in replies}) == 1
    both = text(client, ["hello", "world"], temperature=0, n=2)
    assert len(both.choices) == 4
    assert both.choices[0].text == both.choices[1].text == replies[0].choices[0].text
    streamed = text(client, "hello", temperature=0, stream=True, echo=True)
    assert "".join(part.choices[0].text for part in streamed) == "hello" + replies[0].choices[0].text


@pytest.mark.parametrize("prompt", [[], [[]], [-1], [10**6], [True], "x" * 9000])
def test_what_is_no_prompt(client, prompt):
    with pytest.raises(openai.BadRequestError) as error:
        text(client, prompt)
    assert error.value.param == "prompt"


def test_a_schema_holds_at_any_temperature(client):
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    for seed in range(3):
        said = chat(client, temperature=2, seed=seed, max_tokens=200, response_format=form).choices[0]
        assert said.finish_reason == "stop"
        assert set(json.loads(said.message.content)) == {"yes", "colour"}
    cut = chat(client, max_tokens=3, response_format=form).choices[0]
    assert cut.finish_reason == "length"
    assert chat(client, extra_body={"guided_choice": ["red", "blue"]}).choices[0].message.content in ("red", "blue")


def test_settings_reach_the_sampler(client, model):
    only = model.tokenizer.encode("h")[0]
    assert set(chat(client, logit_bias={str(only): 100}).choices[0].message.content) == {"h"}
    worded = chat(client, logit_bias={str(only): 100}, extra_body={"bad_words": ["h"]}, logprobs=True).choices[0]
    assert "h" not in {token.token for token in worded.logprobs.content}  # "hello" is another token


def test_known_prefixes_are_told(client):
    long = [{"role": "system", "content": "hello world " * 100}, *ASK]
    details = [chat(client, messages=long, max_tokens=1).usage.prompt_tokens_details for _ in range(2)]
    assert [d.cached_tokens > 0 for d in details] == [False, True]


def test_a_short_system_prompt_is_read_once_and_changes_no_reply(client, model):
    system, known = {"role": "system", "content": "be brief"}, []
    for said in ("hello", "how are you"):
        answer = chat(client, messages=[system, {"role": "user", "content": said}], temperature=1, seed=2)
        known.append(answer.usage.prompt_tokens_details.cached_tokens)
        messages = [Message("system", "be brief"), Message("user", said)]
        ids, shared = talk.chat_ids(model, messages), talk.shared(model, messages)
        config = talk.sampling(model, {"temperature": 1.0})
        alone = talk.write(model, ids, config, 2, 12, shared=shared)
        assert answer.choices[0].message.content == "".join(piece.text for piece in alone)
    assert known == [0, shared]


def test_langchain_talks_streams_and_parses(server):
    llm = ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", model="rough", temperature=0, max_tokens=12)
    said = llm.invoke("hello").content
    assert "".join(chunk.content for chunk in llm.stream("hello")) == said
    longer = ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", model="rough", max_tokens=100)
    held = longer.with_structured_output({"title": "answer", **SCHEMA}, method="json_schema")
    assert set(held.invoke("hello")) == {"yes", "colour"}
    told = llm.bind(logprobs=True, top_logprobs=2).invoke("hello").response_metadata["logprobs"]["content"]
    assert all(len(token["top_logprobs"]) == 2 for token in told)
    with pytest.raises(openai.BadRequestError, match="n must be"):
        llm.bind(n=99).invoke("hello")


def test_names_without_v1_and_a_fingerprint_of_the_weights(server, model):
    answer = httpx.post(f"{server.url}/chat/completions", json={"messages": ASK, "max_tokens": 1}).json()
    assert answer["system_fingerprint"].startswith("fp_")
