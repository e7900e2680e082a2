"""Rules with a list: words, hosts and URL parts, from the config and from a file."""

from pathlib import Path

import pytest

from slm_fn.data.clean import list_rules
from slm_fn.data.clean.rules import Rule


@pytest.mark.parametrize(
    ("rule", "kept", "removed"),
    [
        (
            list_rules.banned_words(["bad", "very Bad-word"]),
            ["badly very word"],
            ["so BAD, it", "bad-word"],
        ),
        (list_rules.banned_words(["very bad"]), ["bad very", "every bad"], ["VERY, bad"]),
        (
            list_rules.hosts(["Example.com", "x.org."]),
            ["https://notexample.com/example.com", "http://com", "a.b/x.org", ""],
            [
                "https://example.com/a",
                "http://u:p@WWW.example.com:8080",
                "a.x.org/b",
                "http://x.org./",
                "http://[bad",
            ],
        ),
        (
            list_rules.url_parts(["/ads/", "Casino"]),
            ["http://a/ads", "http://a/cas/ino"],
            ["http://a/ADS/1", "my-casino.com"],
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Rule) else "",
)
def test_a_rule_keeps_on_one_side_and_removes_on_the_other(
    rule: Rule, kept: list[str], removed: list[str]
) -> None:
    for text in kept:
        assert rule.apply(text) is text, text
    for text in removed:
        assert rule.apply(text) is None, text


def test_a_list_comes_from_a_file_and_from_the_config(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("worse\n\n  worst of all \r\n", encoding="utf-8")
    rule = list_rules.banned_words(["bad"], str(file))
    assert [rule.apply(x) for x in ("bad", "worse", "worst of all", "worst")] == [
        None,
        None,
        None,
        "worst",
    ]
    file.write_text("ads.net\n", encoding="utf-8")
    assert list_rules.hosts(file=str(file)).apply("http://a.ads.net/") is None
    assert list_rules.url_parts(file=str(file)).apply("http://b/?ads.net") is None


def test_a_list_that_cannot_be_read_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^hosts: names: no file .*absent; give one"):
        list_rules.hosts(file=str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match="no file"):
        list_rules.banned_words(file=str(tmp_path))
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"latin is not UTF-8 \(byte 3\)"):
        list_rules.url_parts(file=str(tmp_path / "latin"))
    with pytest.raises(ValueError, match=r"^banned_words: words: an empty list; name some"):
        list_rules.banned_words([" "])
