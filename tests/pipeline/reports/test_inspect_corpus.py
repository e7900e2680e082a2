"""pipeline/reports/inspect_corpus.py: figures of texts and sources equal the data."""

import shutil

import pytest

from slm_fn.data.chat import records
from slm_fn.data.corpus.config import CorpusConfig, SourceConfig
from slm_fn.data.io import documents
from slm_fn.pipeline.reports import inspect_corpus
from slm_fn.pipeline.reports.inspect_data import inspect
from slm_fn.pipeline.stages.prepare import PrepareDisplay, prepare


def file_contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_prepared_corpus_shows_what_was_removed(corpus):
    report = inspect(corpus, num_samples=1)
    figures = report.figures
    assert report.kind == "prepared"
    assert figures["plays: status"] == "finished"
    assert (figures["plays: documents read"], figures["plays: documents kept"]) == (9, 6)
    assert figures["plays: removed, duplicate: exact"] == 3  # two of the plays have the same text
    assert report.lengths["plays: document"].count == 6
    assert report.lengths["talk: document"].count == 6  # each of them was read three times
    assert {sample["source"] for sample in report.samples} == {"plays", "talk"}
    assert "the king" in report.samples[0]["text"]
    assert [panel.title for panel in report.panels] == [
        "Length of 12 documents",
        "Removed or repaired, by reason",
    ]
    plays = inspect(corpus / "plays")
    assert plays.lengths == {"plays: document": report.lengths["plays: document"]}


def test_the_text_of_prepared_pairs_is_that_of_their_messages(project, tmp_path):
    config = CorpusConfig(sources={"pairs": SourceConfig(path=str(project.pairs), kind="pairs")})
    prepare(config, tmp_path / "prepared", PrepareDisplay(print))
    report = inspect(tmp_path / "prepared", num_samples=1)
    pair = next(records.read_pairs([project.pairs]))
    messages = [*pair.prompt, *pair.chosen, *pair.rejected]
    text = "\n".join(message.content for message in messages)
    assert report.samples == [{"source": "pairs", "text": text}]


def test_an_inspection_writes_nothing(corpus, tmp_path):
    copy = shutil.copytree(corpus, tmp_path / "copy")
    (copy / "plays" / ".tmp-other-writer").write_text("at work")
    (copy / "plays" / "state.json").write_bytes(b"{}")
    before = file_contents(copy)
    inspect(copy)
    assert file_contents(copy) == before


def test_an_altered_file_is_an_error(corpus, tmp_path):
    copy = shutil.copytree(corpus, tmp_path / "copy")
    file = copy / "plays" / "part_00000.jsonl"
    file.write_bytes(file.read_bytes().replace(b"king", b"knig"))
    with pytest.raises(ValueError, match=r"part_00000.jsonl has another checksum"):
        inspect(copy)


def test_texts_are_counted_and_problems_are_reported(project, tmp_path):
    (tmp_path / "one.md").write_text("to be\nor not\n")
    (tmp_path / "rows.jsonl").write_text('{"text": "né"}\n{"te\n{"text": "last"}\n')
    report = inspect(tmp_path, num_samples=2, tokenizer=project.tokenizer)
    figures = report.figures
    counts = [figures[name] for name in ("documents", "bytes", "characters", "lines")]
    assert counts == [3, 20, 19, 2]
    assert figures["problems"] == 1
    assert "rows.jsonl, line 2" in figures["first_problems"][0]
    assert figures["round_trip"]
    assert figures["bytes_per_token"] == round(20 / figures["tokens"], 3)
    assert [sample["text"] for sample in report.samples] == ["to be\nor not\n", "né"]
    assert len(report.panels) == 3
    assert len(inspect_corpus.inspect_texts(tmp_path, 3, None).panels) == 1


def test_the_chunks_of_a_long_text_are_one_document(tmp_path):
    (tmp_path / "long.md").write_text("a line of it\n" * 100_000)
    report = inspect(tmp_path, num_samples=3)
    assert len(list(documents.read([tmp_path]))) == 2
    assert report.figures["documents"] == 1
    assert report.lengths["document"].longest == 1_300_000
    assert len(report.samples) == 1
