"""infer/constraints.py: complete texts match their grammar, for any schema and any tokenizer."""

import json
import re

import jsonschema_rs
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from slm_fn.core import random
from slm_fn.infer import constraints, sampling
from slm_fn.infer.constraints import Grammar
from slm_fn.infer.sampling import SampleConfig
from slm_fn.text.training import bpe, byte_fallback, char, unigram

CORPUS = [
    '{"name":"To be, or not","age":12,"tags":["a","b"],"ok":true,"none":null}\n "x": [1.5e3, -2]'
    * 3,
    "naïve 日本 😀",
]
TOKENIZERS = {
    "bpe": bpe.train(CORPUS, 400),
    "byte-fallback": byte_fallback.train(CORPUS, 400),
    "unigram": unigram.train(CORPUS, 400),
    "char": char.train(source="ascii"),
}
HOT = sampling.prepare(SampleConfig(temperature=2.0))
PADDED = 7  # rows of a model's head beyond the vocabulary


def generate_text(grammar, seed=0, name="bpe", max_tokens=400):
    """The text of a model of random logits at temperature 2; None if it did not end."""
    tokenizer = TOKENIZERS[name]
    stop = tokenizer.special_id("<|end|>")
    matcher = constraints.compile(tokenizer, [stop], grammar).start()
    ids = []
    for i in range(max_tokens):
        logits = random.normal(random.fold_in(seed, i), (1, tokenizer.vocab_size + PADDED), std=4.0)
        u = random.uniform(random.fold_in(seed, f"u{i}"), (1,))
        masked = constraints.mask_logits([matcher], logits)
        token = int(sampling.choose(sampling.chain([HOT])(masked), u))
        assert token < tokenizer.vocab_size
        if token == stop:
            assert constraints.is_complete(matcher)
            return tokenizer.decode_bytes(ids).decode()
        assert token not in tokenizer.special_tokens.values()
        matcher = constraints.advance(matcher, token)
        ids.append(token)
    return None


words = st.text(max_size=6)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-(10**6), 10**6), words)
bounds = st.tuples(st.integers(-500, 500), st.integers(0, 500)).map(
    lambda b: {"minimum": b[0], "maximum": sum(b)}
)
sizes = st.tuples(st.integers(0, 3), st.integers(0, 4))
leaves = st.one_of(
    sizes.map(lambda n: {"type": "string", "minLength": n[0], "maxLength": sum(n)}),
    st.sampled_from(["[a-z]{1,4}", "^x+[0-9]{2}$", "é|\\d\\w?"]).map(
        lambda p: {"type": "string", "pattern": f"^({p})$"}
    ),
    st.sampled_from(["uuid", "ipv4"]).map(lambda f: {"type": "string", "format": f}),
    st.one_of(st.just({}), bounds).flatmap(
        lambda b: st.sampled_from(["integer", "number"]).map(lambda t: {"type": t, **b})
    ),
    st.lists(scalars, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    scalars.map(lambda value: {"const": value}),
    st.lists(st.sampled_from(["boolean", "null", "integer"]), min_size=1, unique=True).map(
        lambda t: {"type": t}
    ),
)


def objects(inner):
    def build(properties, num_required, more):
        required = list(properties)[:num_required]
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": more,
        }

    return st.builds(
        build,
        st.dictionaries(words, inner, max_size=3),
        st.integers(0, 3),
        st.sampled_from([False, False, True]),
    )


def arrays(inner):
    plain = st.builds(
        lambda items, n: {"type": "array", "items": items, "minItems": n[0], "maxItems": sum(n)},
        inner,
        sizes,
    )
    tuples = st.lists(inner, min_size=1, max_size=3).map(
        lambda items: {
            "type": "array",
            "prefixItems": items,
            "items": False,
            "minItems": len(items),
        }
    )
    return st.one_of(plain, tuples)


def wider(inner):
    either = st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
    named = inner.map(
        lambda s: {
            "$defs": {"it": s},
            "type": "array",
            "items": {"$ref": "#/$defs/it"},
            "maxItems": 2,
        }
    )
    return st.one_of(objects(inner), objects(inner), arrays(inner), either, named)


# A reference starts at the root of the full schema, so a schema with one is not nested.
schemas = st.recursive(
    leaves, lambda inner: st.one_of(objects(inner), arrays(inner)), max_leaves=6
).flatmap(lambda schema: st.one_of(st.just(schema), wider(st.just(schema))))


def check_schema(schema, seed):
    text = generate_text(Grammar("json_schema", schema), seed)
    if text is not None:
        # 1e999 is a number of JSON, though none of Python's.
        value = json.loads(text, parse_float=lambda number: max(-1e308, min(1e308, float(number))))
        assert jsonschema_rs.Draft202012Validator(schema, validate_formats=True).is_valid(value), (
            schema,
            text,
        )
        if not isinstance(value, str):
            assert "\n" not in text, "no whitespace between the elements"
    return text is not None


@settings(max_examples=12)
@given(schema=schemas, seed=st.integers(0, 99))
def test_complete_json_is_valid(schema, seed):
    check_schema(schema, seed)


@pytest.mark.slow
def test_complete_json_is_valid_for_200_schemas_and_most_is_complete():
    ended = []

    @settings(max_examples=200, database=None, derandomize=True, phases=[Phase.generate])
    @given(schema=schemas, seed=st.integers(0, 10**6))
    def law(schema, seed):
        ended.append(check_schema(schema, seed))

    law()
    assert len(ended) >= 200
    assert sum(ended) >= 0.8 * len(ended)


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}
GRAMMARS = [
    (Grammar("json_schema", PERSON), lambda text: list(json.loads(text)) == ["name", "tags"]),
    (
        Grammar("json_schema", json.dumps(PERSON)),
        lambda text: list(json.loads(text)) == ["name", "tags"],
    ),
    (Grammar("json_object"), lambda text: isinstance(json.loads(text), dict)),
    (Grammar("regex", "[a-c]{2,5}(-[0-9])?/x"), re.compile("[a-c]{2,5}(-[0-9])?/x").fullmatch),
    (Grammar("choice", ["yes", "no/\n|(", "no"]), lambda text: text in ("yes", "no/\n|(", "no")),
    (Grammar("grammar", 'start: "(" start ")" | "x"'), re.compile(r"\(*x\)*").fullmatch),
]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(("grammar", "good"), GRAMMARS)
def test_every_kind_of_grammar_with_every_kind_of_tokenizer(grammar, good, name):
    ended = [
        text
        for text in (generate_text(grammar, seed, name, 60) for seed in range(4))
        if text is not None
    ]
    assert all(map(good, ended)), ended
    assert ended


@settings(max_examples=20)
@given(
    choices=st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_a_choice_may_be_any_text(choices, seed):
    assert generate_text(Grammar("choice", choices), seed) in choices


def test_every_row_has_its_own_grammar_or_none():
    tokenizer = TOKENIZERS["bpe"]
    stop = tokenizer.special_id("<|end|>")
    yes, digits = (
        constraints.compile(tokenizer, {stop}, g).start()
        for g in (Grammar("choice", ["yes"]), Grammar("regex", "[0-9]+"))
    )
    logits = random.normal(0, (3, tokenizer.vocab_size + PADDED))
    out = constraints.mask_logits([yes, None, digits], logits)
    assert torch.equal(out[1], logits[1])
    assert torch.equal(out[2:], constraints.mask_logits([digits], logits[2:]))
    assert {tokenizer.decode([i]) for i in (out[0] > -torch.inf).nonzero().flatten().tolist()} <= {
        "y",
        "ye",
        "yes",
    }
    assert (out[[0, 2], tokenizer.vocab_size :] == -torch.inf).all()
    assert constraints.mask_logits([None], logits) is logits


def test_a_matcher_does_not_change_when_it_advances():
    tokenizer = TOKENIZERS["bpe"]
    first = constraints.compile(
        tokenizer, {tokenizer.special_id("<|end|>")}, Grammar("regex", "ab")
    ).start()
    before = constraints.allowed_tokens(first)
    second = constraints.advance(first, tokenizer.encode("a")[0])
    assert torch.equal(constraints.allowed_tokens(first), before)
    assert not torch.equal(constraints.allowed_tokens(second), before)
    assert not constraints.is_complete(second)
    third = constraints.advance(second, tokenizer.encode("b")[0])
    assert constraints.is_complete(third)
    assert constraints.is_complete(constraints.advance(third, tokenizer.special_id("<|end|>")))


def test_a_grammar_cannot_allow_a_special_token_and_is_then_incomplete():
    tokenizer = TOKENIZERS["bpe"]
    stop, user = map(tokenizer.special_id, ("<|end|>", "<|user|>"))
    for lark in (f'start: <[{user}]> "a"', 'start: <|user|> "a"'):
        matcher = constraints.compile(tokenizer, {stop}, Grammar("grammar", lark)).start()
        assert constraints.allowed_tokens(matcher).nonzero().flatten().tolist() == [stop]
        assert not constraints.is_complete(constraints.advance(matcher, stop))


@pytest.mark.parametrize(
    ("grammar", "error"),
    [
        (Grammar("json_schema", {"type": "string", "not": {}}), 'json_schema: .*"not"'),
        (Grammar("json_schema", {"properties": {"a": {"uniqueItems": True}}}), "uniqueItems"),
        (Grammar("json_schema", {"type": "str"}), "str"),
        (Grammar("json_schema", {"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf"),
        (Grammar("json_schema", {"x-guidance": {"lenient": True}, "not": {}}), "x-guidance"),
        (Grammar("json_schema", {"minimum": 3, "maximum": 2, "type": "integer"}), "minimum"),
        (Grammar("json_schema", {"$ref": "https://example.com/a.json"}), "example.com"),
        (Grammar("json_schema", "{"), "json_schema: not JSON"),
        (Grammar("json_schema", True), "json_schema: must be an object"),
        (Grammar("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000), "json_schema: "),
        (Grammar("json_object", {}), "json_object: takes no source"),
        (Grammar("regex", "("), "regex: .*unclosed group"),
        (Grammar("regex", "(?=a)"), "regex: .*look-ahead"),
        (Grammar("regex", ""), "regex: must be"),
        (Grammar("choice", []), "choice: must be"),
        (Grammar("choice", "yes"), "choice: must be"),
        (Grammar("choice", ["a", ""]), "choice: must be"),
        (Grammar("choice", ["\ud800"]), "choice: .*surrogates"),
        (Grammar("grammar", "start: foo"), 'grammar: .*unknown name: "foo"'),
        (Grammar("grammar", "start: <|nope|>"), "grammar: .*nope"),
        (Grammar("grammar", " "), "grammar: must be"),
        (Grammar("yaml", ""), "json_schema, json_object, regex, choice, grammar; got yaml"),
    ],
)
def test_an_invalid_grammar_is_an_error_of_one_line(grammar, error):
    with pytest.raises(ValueError, match=error) as caught:
        constraints.compile(TOKENIZERS["bpe"], [5], grammar)
    assert "\n" not in str(caught.value)


def test_a_missing_character_of_a_character_tokenizer_is_named():
    made = TOKENIZERS["char"]
    with pytest.raises(ValueError, match="tokenizer has no character 'é'"):
        constraints.compile(made, [made.special_id("<|end|>")], Grammar("choice", ["né"]))


def test_a_grammar_needs_a_stop_token():
    with pytest.raises(ValueError, match="stop token"):
        constraints.compile(TOKENIZERS["bpe"], [], Grammar("json_object"))
