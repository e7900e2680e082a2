"""pipeline/tokenize.py.

Files to a tokenizer, whatever the order they are named in; a sample spread over the corpus.
"""

import json

import pytest

from slm_fn.pipeline.stages import train_tokenizer
from slm_fn.pipeline.stages.train_tokenizer import TextSample, TokenizerConfig, train_from_files


def test_the_order_of_files_does_not_matter(project, tmp_path):
    files = sorted(project.text.iterdir())
    one, two = (
        train_from_files(TokenizerConfig(vocab_size=300), order, tmp_path / "t.json")
        for order in (files, files[::-1])
    )
    assert one.fingerprint == two.fingerprint
    assert one.vocab_size == 300


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "texts").mkdir()
    for file in range(4):
        rows = (
            json.dumps({"text": f"document {file} {row} " + "word " * 40}) for row in range(100)
        )
        (tmp_path / "texts" / f"{file}.jsonl").write_text("\n".join(rows))
    return tmp_path / "texts"


def test_a_sample_is_about_as_large_as_asked_spread_and_the_same_again(corpus):
    whole = list(TextSample((corpus,)))
    size = sum(map(len, whole))
    drawn = TextSample((corpus,), max_bytes=size // 4, seed=1)
    texts = list(drawn)
    assert 0.15 * size < sum(map(len, texts)) <= 0.25 * size + 300
    assert {text.split()[1] for text in texts} == {"0", "1", "2", "3"}
    assert texts == list(drawn)
    for seed in range(8):  # by chance some draws would be larger
        assert (
            sum(map(len, TextSample((corpus,), max_bytes=size // 4, seed=seed)))
            <= 0.25 * size + 300
        )
    assert texts != list(TextSample((corpus,), max_bytes=size // 4, seed=2))
    assert set(texts) < set(whole)


def test_a_sample_larger_than_the_corpus_is_the_corpus(corpus):
    assert list(TextSample((corpus,), max_bytes=1 << 40)) == list(TextSample((corpus,)))
    assert len(whole := list(TextSample((corpus,), max_lines=7))) == 7
    assert whole == list(TextSample((corpus,)))[:7]


def test_sizes_are_estimated(corpus, tmp_path):
    import gzip

    plain = train_tokenizer.estimate([corpus])
    assert plain == sum(file.stat().st_size for file in corpus.iterdir())
    assert train_tokenizer.estimate([corpus, corpus / "0.jsonl"]) == plain
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"abc" * 1000))
    assert (
        train_tokenizer.estimate([tmp_path / "a.txt.gz"])
        == 4 * (tmp_path / "a.txt.gz").stat().st_size
    )


def test_what_cannot_be_read_is_told_once_or_stops(corpus, tmp_path):
    (corpus / "broken.txt").write_bytes(b"fine \xff\xfe")
    told = []
    made = train_from_files(
        TokenizerConfig(vocab_size=300), [corpus], tmp_path / "t.json", told.append
    )
    assert made.vocab_size > 262
    assert len(told) == 1
    assert "broken.txt" in told[0]
    with pytest.raises(ValueError, match=r"broken\.txt"):
        train_from_files(TokenizerConfig(vocab_size=300), [corpus], tmp_path / "t.json")


def test_a_place_that_cannot_be_written_is_told_before_anything_is_read(corpus, tmp_path):
    def problem(line):
        raise AssertionError(line)

    with pytest.raises(
        ValueError, match=r"is a folder; name the file to write, say .*tokenizer.json"
    ):
        train_from_files(TokenizerConfig(vocab_size=300), [tmp_path / "nowhere"], corpus, problem)
    file = corpus / "0.jsonl"
    with pytest.raises(ValueError, match="would be overwritten"):
        train_from_files(
            TokenizerConfig(vocab_size=300), [file], corpus / ".." / "texts" / "0.jsonl"
        )
    assert file.read_text().startswith('{"text": "document 0 0')


def test_texts_may_stand_in_another_field(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "to be, or not to be"}\n')
    (tmp_path / "b.txt").write_text("to be, or not to be")
    config = TokenizerConfig(vocab_size=270)
    made = train_from_files(config, [tmp_path / "a.jsonl"], tmp_path / "a.json", column="body")
    assert made == train_from_files(config, [tmp_path / "b.txt"], tmp_path / "b.json")
    with pytest.raises(ValueError, match="no field `text`; there are body"):
        train_from_files(config, [tmp_path / "a.jsonl"], tmp_path / "c.json")
