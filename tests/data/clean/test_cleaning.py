"""Cleaning: rules by name, clear errors, counts that add up, the same in another process."""

import inspect
import pickle
import pydoc_data.topics
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import pytest

from slm_fn.data.clean import cleaning
from slm_fn.data.clean.cleaning import (
    CHANGED,
    PRESETS,
    RULES,
    URL_RULES,
    CleanResult,
    build_rules,
    clean,
)
from slm_fn.data.clean.rules import Rule

TEXTS = [
    *pydoc_data.topics.topics.values(),
    "{",
    "It is. " * 60,
    "",
    "\n",
    "Enable JavaScript.\n" + "to be or not. " * 50,
]
LISTS: dict[str, dict[str, Any]] = {
    "banned_words": {"words": ["bad"]},
    "hosts": {"names": ["a.b"]},
    "url_parts": {"parts": ["ads"]},
}


def test_the_first_rule_that_removes_ends_the_cleaning() -> None:
    rules = build_rules(["citations", {"length": {"least": 3}}, "lorem_ipsum"])
    assert clean(rules, "abc") == CleanResult("abc", "")
    assert clean(rules, "abc[1]") == CleanResult("abc", CHANGED)
    assert clean(rules, "ab[1]") == CleanResult(None, "length")
    assert clean(rules, "[1]") == CleanResult(None, "citations")
    assert clean([Rule("strip", str.strip)], " \n") == CleanResult(None, "strip"), "nothing left"
    assert clean((), "x") == CleanResult("x", "")
    assert clean([Rule("up", str.upper), Rule("low", str.lower)], "a") == CleanResult("a", "")


@pytest.mark.parametrize("preset", PRESETS)
def test_counts_add_up(preset: str) -> None:
    rules = build_rules([preset])
    results = [clean(rules, text) for text in TEXTS]
    counts = Counter(reason for _, reason in results)
    names = {rule.name for rule in rules}
    assert counts.keys() <= names | {CHANGED, ""}
    assert sum(counts[name] for name in names) == sum(text is None for text, _ in results)
    assert counts[""] == sum(
        text == before for (text, _), before in zip(results, TEXTS, strict=True)
    )
    assert counts.total() == len(TEXTS)
    assert len(counts.keys() & names) >= 3, counts
    for text, _ in results:
        assert text is None or (text.strip() and clean(rules, text).text in (text, None))


def test_presets_have_the_rules_of_their_papers() -> None:
    assert {rule.name for rule in build_rules(["gopher"])} == {
        *("word_count", "word_length", "symbols", "bullets", "ellipses", "letters", "stop_words"),
        *("duplicate_lines", "duplicate_paragraphs"),
        *("duplicate_line_characters", "duplicate_paragraph_characters"),
        *(f"top_{n}_gram" for n in (2, 3, 4)),
        *(f"duplicate_{n}_grams" for n in range(5, 11)),
    }
    c4 = {rule.name for rule in build_rules(["c4"])}
    assert c4 == {
        *("citations", "terminal_lines", "line_words", "javascript_lines", "line_phrases"),
        *("lorem_ipsum", "curly_braces", "sentences"),
    }, "without bad words"
    web = [rule.name for rule in build_rules(["web"])]
    assert len(set(web)) == len(web)
    assert set(web) == {rule.name for rule in build_rules(["gopher"])} | c4 - {"terminal_lines"} | {
        "line_endings",
        "short_lines",
    }
    stricter = next(
        rule for rule in build_rules(["web"]) if rule.name == "duplicate_line_characters"
    )
    fifth = "\n".join([*map(str, range(10, 94)), *["10"] * 16])
    assert stricter.apply(fifth) is None
    assert (
        next(r for r in build_rules(["gopher"]) if r.name == "duplicate_line_characters").apply(
            fifth
        )
        == fifth
    )


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["lorem_ipsun"], r"no rule 'lorem_ipsun'; did you mean 'lorem_ipsum'\?"),
        (["gophr"], r"no rule 'gophr'; did you mean 'gopher'\?"),
        (["zzz"], r"no rule 'zzz'; there are length, .*gopher, c4, web"),
        ([{"length": {"leest": 3}}], r"length has no argument 'leest'; did you mean 'least'\?"),
        ([{"lorem_ipsum": {"xyz": 3}}], r"lorem_ipsum has no argument 'xyz'; there are none"),
        ([{"length": {"least": "many"}}], r"length: least 'many': Expected `int`, got `str`"),
        (
            [{"banned_words": {"words": "bad"}}],
            r"banned_words: words 'bad': Expected `array`, got `str`",
        ),
        ([{"gopher": {"most": 1}}], r"the preset 'gopher' takes no arguments; name its rules"),
        ([{"length": 3}], r"\{'length': 3\} is not a rule; write a name, or"),
        ([{"length": None, "symbols": None}], "is not a rule; write a name"),
        ([None], "None is not a rule"),
        ([{"top_ngram": {"n": 9}}], "top_ngram: n 9"),
        ([{"letters": {"least": True}}], "Expected `float`, got `bool`"),
    ],
)
def test_a_mistake_is_one_clear_line(specs: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build_rules(specs)
    assert "\n" not in str(error.value)


def test_url_rules_are_rules_over_another_string() -> None:
    rules = build_rules(
        [{"hosts": {"names": ["spam.com"]}}, {"url_parts": {"parts": ["/login"]}}], URL_RULES
    )
    urls = ["https://a.org/x", "https://www.spam.com/", "https://a.org/Login"]
    assert [clean(rules, url).reason for url in urls] == ["", "hosts", "url_parts"]
    with pytest.raises(ValueError, match="no rule 'gopher'; there are hosts, url_parts"):
        build_rules(["gopher"], URL_RULES)


@pytest.mark.parametrize("name", [*RULES, *URL_RULES])
def test_every_rule_is_named_for_its_constructor_described_and_picklable(name: str) -> None:
    registry = RULES if name in RULES else URL_RULES
    [rule] = build_rules([{name: LISTS.get(name)}], registry)
    assert rule.name == {"top_ngram": "top_2_gram", "duplicate_ngrams": "duplicate_5_grams"}.get(
        name, name
    )
    assert inspect.getdoc(registry[name])
    again = pickle.loads(pickle.dumps(rule))
    assert [again.apply(text) for text in TEXTS] == [rule.apply(text) for text in TEXTS]


def test_another_process_gives_the_same() -> None:
    rules = build_rules([*PRESETS, {"banned_words": {"words": ["exec", "very bad"]}}])
    texts = TEXTS[:20]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(partial(cleaning.clean, rules), texts)) == [
            clean(rules, text) for text in texts
        ]
