"""A prepared corpus for the tests of reports."""

import pytest

from slm_fn.data.corpus.config import CorpusConfig, SourceConfig
from slm_fn.pipeline.stages.prepare import PrepareDisplay, prepare


@pytest.fixture(scope="session")
def corpus(project, tmp_path_factory):
    """A prepared corpus of two sources: plays, one of them twice, and conversations."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = folder / "raw"
    texts.mkdir()
    for play in project.text.iterdir():
        (texts / play.name).write_bytes(play.read_bytes())
    (texts / "again.md").write_bytes((project.text / "play-0.md").read_bytes())
    sources = {
        "plays": SourceConfig(path=str(texts)),
        "talk": SourceConfig(path=str(project.chat), kind="chat"),
    }
    out = folder / "prepared"
    prepare(CorpusConfig(sources=sources), out, PrepareDisplay(lambda line: None))
    return out
