"""pipeline/reports/inspect_data.py: the kind of the data is detected, and errors are plain."""

import gzip
from pathlib import Path

import pytest

from slm_fn.pipeline.reports.inspect_data import detect_kind, inspect


def test_the_kind_of_the_data_is_detected(project, corpus, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "broken.jsonl").write_text("{\n")
    (tmp_path / "chat.jsonl.gz").write_bytes(gzip.compress(project.chat.read_bytes()))
    kinds = {
        project.pack: "pack",
        corpus: "prepared",
        corpus / "plays": "prepared",
        project.text: "text",
        project.chat: "chat",
        project.pairs: "pairs",
        tmp_path / "texts.jsonl": "text",
        tmp_path / "broken.jsonl": "text",
        tmp_path / "chat.jsonl.gz": "chat",
    }
    assert {path: detect_kind(path) for path in kinds} == kinds
    with pytest.raises(FileNotFoundError, match="no file or folder at nowhere"):
        inspect(Path("nowhere"))
