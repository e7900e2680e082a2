"""pipeline/stages/source_plan.py: what counts as a change of a source, and errors as one line."""

import msgspec
import pytest

from slm_fn.config import CorpusConfig, convert
from slm_fn.data.corpus import config as corpus
from slm_fn.pipeline.stages import source_plan


def only_source(**settings):
    config = convert({"sources": {"web": settings}}, "c.yaml", CorpusConfig)
    return config, corpus.resolve(config)["web"]


def test_settings_that_are_not_set_are_left_out(tmp_path):
    config, source = only_source(path=str(tmp_path))
    settings = source_plan._settings(config, source)
    assert "max_documents" not in settings
    assert "enabled" not in settings
    assert settings["part_bytes"] == config.part_bytes
    assert msgspec.json.decode(msgspec.json.encode(settings)) == settings


def test_a_limit_in_tokens_depends_on_bytes_per_token(tmp_path):
    config, source = only_source(path=str(tmp_path), max_tokens=10)
    settings = source_plan._settings(config, source)
    assert settings["bytes_per_token"] == config.bytes_per_token


def test_a_source_that_cannot_be_read_is_planned_with_its_error(tmp_path):
    config, source = only_source(path=str(tmp_path / "missing"))
    worker = source_plan.build_worker(config, "web", source)
    plan = source_plan.plan_source(config, "web", source, worker, tmp_path / "out")
    assert "missing" in plan.error
    assert (plan.existing, plan.changed) == (None, [])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\nlines"), "two lines"),
        (FileNotFoundError(2, "No such file", "a.txt"), "a.txt: No such file"),
        (KeyError("x"), "KeyError: 'x'"),
        (ValueError(""), "ValueError: "),
    ],
)
def test_errors_become_one_line(error, line):
    assert source_plan.error_line(error) == line
