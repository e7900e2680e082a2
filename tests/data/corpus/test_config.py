"""Sources completed or rejected, and paths expanded."""

import pytest

from slm_fn.data.corpus.config import CorpusConfig, SourceConfig, expand_path, resolve


def test_unset_fields_of_a_source_are_the_corpus_s():
    config = CorpusConfig(
        sources={
            "a": SourceConfig(path="a"),
            "b": SourceConfig(
                path="b", clean=(), dedup="none", lowercase=False, columns=("title", "body")
            ),
            "c": SourceConfig(path="c", kind="chat"),
            "d": SourceConfig(path="d", enabled=False),
        },
        clean=("gopher",),
        dedup="near",
        lowercase=True,
    )
    a, b, c = resolve(config).values()
    assert (a.clean, a.dedup, a.lowercase, a.columns) == (("gopher",), "near", True, ("text",))
    assert (b.clean, b.dedup, b.lowercase, b.columns) == ((), "none", False, ("title", "body"))
    assert (c.clean, c.dedup) == ((), "near"), "rules for text would remove every conversation"


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ({}, "no enabled source"),
        ({"x": {}}, "exactly one of `hub` and `path`"),
        ({"x": {"hub": "a/b", "path": "c"}}, "exactly one of `hub` and `path`"),
        ({"x": {"path": "a", "config": "b"}}, "belong to a `hub` source"),
        ({"x": {"path": "a", "layout": "oasst"}}, "set `kind: chat`"),
        (
            {"x": {"path": "a", "kind": "chat", "layout": "preference"}},
            "no layout 'preference'; there are messages",
        ),
        (
            {"x": {"path": "a", "kind": "pairs", "layout": "oasst"}},
            "there are preference, oasst_pairs for pairs",
        ),
        ({"x": {"path": "a", "languages": ("en",)}}, "set `kind: chat`"),
        (
            {"x": {"path": "a", "kind": "chat", "layout": "ultrachat", "languages": ("en",)}},
            "are for OASST's trees",
        ),
        (
            {"x": {"path": "a", "kind": "pairs", "filters": ("turns",)}},
            "`filters` are for conversations",
        ),
        ({"x": {"path": "a", "columns": ()}}, "`columns` is empty"),
        ({"x": {"path": "a", "max_tokens": 0}}, "limits must be at least 1"),
        ({"../x": {"path": "a"}}, r"'\.\./x': a name is letters"),
        ({"x": {"path": "a"}, "X": {"path": "b"}}, "'x' and 'X': their folders would be one"),
    ],
)
def test_a_source_that_contradicts_itself_is_rejected(sources, words):
    with pytest.raises(ValueError, match=words) as error:
        resolve(
            CorpusConfig(
                sources={name: SourceConfig(**settings) for name, settings in sources.items()}
            )
        )
    assert "\n" not in str(error.value)


def test_a_variable_without_a_value_is_an_error(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_path("~/a", {}).as_posix() == "/home/me/a"
    assert expand_path("${A:-~/b}/${C}", {"C": "c"}).as_posix() == "/home/me/b/c"
    with pytest.raises(ValueError, match="the variable A is not set"):
        expand_path("${A}/b", {})
