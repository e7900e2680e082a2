"""pipeline/reports/inspect_pack.py: documents are measured by their boundaries in the pack."""

import msgspec

from slm_fn.data.io import documents
from slm_fn.data.pack import dataset as packs
from slm_fn.pipeline.reports import inspect_pack
from slm_fn.pipeline.reports.data_report import DataReport
from slm_fn.pipeline.reports.inspect_data import inspect
from slm_fn.pipeline.stages.pack import PackConfig, pack_documents
from slm_fn.text.tokenizer import Tokenizer


def test_the_documents_of_a_pack_are_measured_by_their_boundaries(project):
    report = inspect(project.pack, num_samples=2)
    tokenizer = Tokenizer.load(project.tokenizer)
    sizes = sorted(
        1 + len(tokenizer.encode(document.text))
        for document in documents.read([project.text])
        if document.name != "play-7.md"
    )
    histogram = report.lengths["train: document"]
    assert histogram.count == 7
    assert histogram.total == sum(sizes)
    assert histogram.shortest == sizes[0]
    assert histogram.longest == sizes[-1]
    assert report.figures["val: boundaries found"] == 1
    info = packs.open_pack(project.pack).info
    assert report.figures["train: share of tokens"] == round(
        info.splits["train"].tokens / sum(split.tokens for split in info.splits.values()), 4
    )
    assert [sample["split"] for sample in report.samples] == ["train", "train", "val", "val"]
    assert report.panels[0].title == "Length of 8 documents"


def test_a_report_is_encoded_as_json(project):
    report = inspect(project.pack, num_samples=1)
    assert isinstance(report, DataReport)
    values = msgspec.json.decode(msgspec.json.encode([report.figures, report.samples]))
    assert values == [report.figures, report.samples]
    assert msgspec.json.encode(report.lengths)


def test_a_pack_of_many_shards_has_the_same_documents(project, tmp_path, monkeypatch):
    tokenizer = Tokenizer.load(project.tokenizer)
    config = PackConfig(seq_len=64, shard_size=100, val_fraction=0.0, val_names=("play-7.md",))
    pack_documents(config, tokenizer, documents.read([project.text]), tmp_path / "pack")
    monkeypatch.setattr(inspect_pack, "CHUNK_TOKENS", 7)
    assert inspect(tmp_path / "pack").lengths == inspect(project.pack).lengths
